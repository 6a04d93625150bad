"""Checks of an installation against exact answers: sums over all images, autograd, a closed-form likelihood."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vlae.codec import compress, decompress
from vlae.distributions import AutoregressiveFlowPrior, Categorical, LogisticMixture, make_prior
from vlae.models import VAE, VLAE, load
from vlae.nn import ReceptiveField

STACKS = ("two", "slanted", "plain", "row_lstm", "attention")

Check = Callable[[], tuple[str, float, float]]  # what was compared, the largest error, the tolerance


def tiny(image_shape: tuple[int, int, int], **options: object) -> VLAE:
    """A small VLAE in float64 with random weights."""
    settings: dict[str, object] = {"latent_dim": 4, "encoder_widths": [4], "encoder_hidden": 16, "channels": 8}
    return VLAE(image_shape, **{**settings, "flow_hidden": (16,), **options}).double().eval()  # type: ignore[arg-type]


def mass_over_all_images() -> tuple[str, float, float]:
    """Sum of p(x|z) over every binary 3x3 image."""
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=9)), dtype=torch.float64).view(512, 1, 3, 3)
    errors = []
    for stacks in STACKS:
        model = tiny((1, 3, 3), stacks=stacks)
        z = torch.randn(1, 4, dtype=torch.float64).expand(512, 4)
        errors.append(abs(model.decode(z).log_prob(images).exp().sum().item() - 1))
    return "sum of p(x|z) over all 512 binary 3x3 images is 1", max(errors), 1e-10


def mass_over_levels() -> tuple[str, float, float]:
    """Sum of the likelihoods of levels over all levels."""
    values = torch.linspace(0, 1, 256, dtype=torch.float64)
    errors = []
    for likelihood in (Categorical(256), LogisticMixture(256)):
        parameters = torch.randn(1, likelihood.parameters_per_value, dtype=torch.float64).expand(256, -1)
        errors.append(abs(likelihood(parameters).log_prob(values).exp().sum().item() - 1))
    return "sum of 256-level likelihoods over their levels is 1", max(errors), 1e-10


def prior_mass() -> tuple[str, float, float]:
    """The integral of priors over a plane, on a grid."""
    axis = torch.linspace(-10, 10, 321, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    area = (axis[1] - axis[0]).item() ** 2
    masses = [
        make_prior(name, (2,)).double()().log_prob(grid).exp().sum().item() * area
        for name in ("normal", "flow", "spline", "autoregressive_mixture", "mixture", "delta")
    ]
    return "integral of six priors over the plane is 1", max(abs(mass - 1) for mass in masses), 1e-4


def receptive_field() -> tuple[str, float, float]:
    """The autograd Jacobian of a logit against the declared window."""
    wrong = 0
    for stacks in STACKS:
        model = tiny((1, 6, 8), stacks=stacks)
        context = model.decoder(torch.randn(1, 4, dtype=torch.float64))
        x = torch.rand(1, 1, 6, 8, dtype=torch.float64, requires_grad=True)
        logits = model.decoder.pixels(x, context)[0, 0, 0]
        for i, j in itertools.product(range(6), range(8)):
            (gradient,) = torch.autograd.grad(logits[i, j], x, retain_graph=True)
            wrong += int(((gradient[0, 0] != 0) != window(model.decoder.receptive_field, i, j, 6, 8)).sum())
    return "pixels where the Jacobian and the declared window differ", wrong, 0


def window(field: ReceptiveField, row: int, column: int, height: int, width: int) -> Tensor:
    """The declared field of one pixel as a bool image [height, width]."""
    seen = torch.zeros(height, width, dtype=torch.bool)
    for i, j in field.offsets:
        if 0 <= row + i < height and 0 <= column + j < width:
            seen[row + i, column + j] = True
    return seen


def flow_determinant() -> tuple[str, float, float]:
    """The flow's log-density against the autograd Jacobian of z -> eps."""
    prior = AutoregressiveFlowPrior(5, steps=3, hidden=(32,)).double()()
    z = torch.randn(5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(prior.noise_of, z)
    noise = prior.noise_of(z)
    exact = torch.distributions.Normal(0, 1).log_prob(noise).sum() + torch.linalg.slogdet(jacobian).logabsdet
    return "log p(z) of the flow against autograd, nats", abs((prior.log_prob(z) - exact).item()), 1e-10


def wavefront_is_raster() -> tuple[str, float, float]:
    """Wavefront samples against the one-pixel-at-a-time loop, same uniforms."""
    likelihood = tiny((1, 7, 9)).decode(torch.randn(2, 4, dtype=torch.float64))
    u = torch.rand(2, 1, 7, 9, dtype=torch.float64)
    differing = (likelihood.sample(uniforms=u) != likelihood.sample(uniforms=u, method="raster")).sum().item()
    return "pixels where wavefront and raster sampling differ", differing, 0


def analytic_rate() -> tuple[str, float, float]:
    """The closed-form KL against a Monte Carlo mean, in standard errors."""
    model = VAE((1, 4, 4), latent_dim=3, architecture="mlp", widths=[8]).double().eval()
    x = torch.randint(0, 2, (1, 1, 4, 4)).double().expand(20_000, 1, 4, 4)
    with torch.no_grad():
        rates = model.elbo(x, analytic=False).rate
        exact = model.elbo(x[:1]).rate
    error = ((rates.mean() - exact) / (rates.std() / len(rates) ** 0.5)).abs().item()
    return "analytic and Monte Carlo rate, in standard errors", error, 5


def saving() -> tuple[str, float, float]:
    """A model's bound before and after saving."""
    model = tiny((1, 6, 6))
    x = torch.randint(0, 2, (4, 1, 6, 6)).double()
    with tempfile.TemporaryDirectory() as folder:
        again = load(model.save_pretrained(Path(folder) / "model"))
    seeds = [torch.Generator().manual_seed(1) for _ in range(2)]
    before, after = (m.elbo(x, generator=g).elbo for m, g in zip((model, again), seeds, strict=True))
    return "bound before and after saving, nats", (before - after).abs().max().item(), 0


def codec() -> tuple[str, float, float]:
    """Images through the codec and back."""
    model = tiny((1, 6, 7), flow_order="same")
    x = torch.randint(0, 2, (6, 1, 6, 7)).double()
    differing = (decompress(model, compress(model, x, images_per_block=3, verify=False)) != x).sum().item()
    return "pixels that the codec does not give back", differing, 0


def training() -> tuple[str, float, float]:
    """Thirty steps on sixteen images must lower the negative bound."""
    model = tiny((1, 6, 6)).float().train()
    x = (torch.rand(16, 1, 6, 6) < 0.3).float()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    bounds = []
    for _ in range(30):
        loss = -model.elbo(x).elbo.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bounds.append(loss.item())
    return "-ELBO after 30 steps as a fraction of that before", bounds[-1] / bounds[0], 0.9


CHECKS: list[Check] = [
    mass_over_all_images,
    mass_over_levels,
    prior_mass,
    receptive_field,
    flow_determinant,
    wavefront_is_raster,
    analytic_rate,
    saving,
    codec,
    training,
]


def run() -> int:
    """Runs all checks and prints a table; 0 if all passed, else 1."""
    table = Table(title="vlae verify", title_justify="left")
    for column in ("check", "found", "at most", ""):
        table.add_column(column, justify="left" if column in ("check", "") else "right")
    failed, started = 0, time.monotonic()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for check in CHECKS:
            text, error, tolerance = check()
            good = error <= tolerance  # NaN is not
            failed += not good
            table.add_row(text, f"{error:.2g}", f"{tolerance:g}", "ok" if good else "FAILED")
    console = Console()
    console.print(table)
    console.print(f"{len(CHECKS) - failed} of {len(CHECKS)} checks passed in {time.monotonic() - started:.1f} s")
    return int(failed > 0)

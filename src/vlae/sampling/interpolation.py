"""Paths between two codes: straight in z, or along the sphere of the prior's noise."""

from __future__ import annotations

import torch
from torch import Tensor

from vlae.errors import VlaeError
from vlae.models.base import LatentVariableModel
from vlae.models.latents import Latents, each
from vlae.sampling.decoding import from_noise_rows, noise_rows, of_row, one_row, require_continuous

PATHS = ("linear", "spherical")


@torch.no_grad()
def interpolate(
    model: LatentVariableModel,
    first: Latents,
    second: Latents,
    steps: int,
    path: str = "spherical",
    context: Tensor | None = None,
) -> Latents:
    """A path of `steps` codes from one code [*latent_shape] to another: [steps, *latent_shape], both ends exact.

    In many dimensions nearly all of N(0, I) lies near the sphere of radius sqrt(D), which a straight line leaves: its
    middle is nearer to 0 than any sample is, and so unlike what the decoder has seen (White 2016, arXiv 1609.04468).

    Args:
        model: with a continuous code.
        first: the code to start from; a ladder's is a tuple of [d_l].
        second: the code to arrive at.
        steps: 2 or more, with both ends.
        path: "linear", straight in z; or "spherical", along a great circle of the noise eps of z = f(eps), which the
            prior makes standard normal, the norm changing evenly from one end's to the other's.
        context: of conditional models whose prior depends on it.
    """
    require_continuous(model, "an interpolation")
    if path not in PATHS:
        raise VlaeError(f"the path must be 'linear' or 'spherical'; got {path!r}")
    if steps < 2:
        raise VlaeError(f"a path has 2 steps or more, with both ends; got {steps}")
    start, stop = (each(lambda level: level.unsqueeze(0), z) for z in (first, second))
    ends = one_row(start), one_row(stop)
    weights = torch.linspace(0, 1, steps, dtype=ends[0].dtype, device=ends[0].device)[:, None]
    if path == "linear":
        rows = torch.lerp(*ends, weights)
    else:
        noise = noise_rows(model, start, context), noise_rows(model, stop, context)
        rows = one_row(from_noise_rows(model, slerp(*noise, weights), context))
    rows[:1], rows[-1:] = ends  # not even rounded on the way to the noise and back
    return of_row(rows, start)


def slerp(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """From first to second, [1, D] each, by weights [S, 1] from 0 to 1: the direction turns evenly, the norm grows so.

    Where there is no one way to turn, between opposite or equal directions or at 0, the path is straight: [S, D].

    Example:
        >>> slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]]), torch.tensor([[0.5]]))
        tensor([[1.4142, 1.4142]])
    """
    norms = first.norm(), second.norm()
    a, b = first / norms[0].clamp_min(1e-30), second / norms[1].clamp_min(1e-30)
    # From the half chords, exact for small angles too, unlike the inverse cosine.
    angle = 2 * torch.atan2((a - b).norm(), (a + b).norm())
    if not min(norms) > 0 or angle.sin() < 1e-4:
        return torch.lerp(first, second, weights)
    direction = (((1 - weights) * angle).sin() * a + (weights * angle).sin() * b) / angle.sin()
    return direction * torch.lerp(*norms, weights)

"""The maximum mean discrepancy between codes and prior, and the InfoVAE objective made of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vlae.errors import VlaeError, is_number, require_numbers
from vlae.models.base import Bound, LatentVariableModel
from vlae.models.context import given
from vlae.objectives.codes import in_rows, require_continuous
from vlae.objectives.elbo import Objective
from vlae.processes import total, whole

Kernel = Callable[[Tensor, float], Tensor]

KERNELS: dict[str, Kernel] = {
    "rbf": lambda squares, bandwidth: (-squares / (2 * bandwidth**2)).exp(),
    "imq": lambda squares, bandwidth: 1 / (1 + squares / (2 * bandwidth**2)),
}


def mmd(a: Tensor, b: Tensor, kernel: str = "rbf", bandwidth: float | None = None) -> Tensor:
    r"""The unbiased estimate of MMD^2 between the distributions of a [N, D] and b [M, D], a scalar, perhaps negative.

    .. math:: \frac{1}{N(N-1)} \sum_{i \ne j} k(a_i, a_j) + \frac{1}{M(M-1)} \sum_{i \ne j} k(b_i, b_j)
        - \frac{2}{NM} \sum_{i,j} k(a_i, b_j)

    Gretton et al. 2012, equation 3.

    Args:
        a: samples of one distribution, two or more.
        b: of the other.
        kernel: "rbf", exp(-d^2 / (2 bandwidth^2)); or "imq", 1 / (1 + d^2 / (2 bandwidth^2)), whose tails are heavier
            (Tolstikhin et al. 2018, arXiv 1711.01558).
        bandwidth: None takes sqrt(D): 2 bandwidth^2 is then the expected d^2 of two standard normal samples.

    Example:
        >>> a = torch.zeros(3, 2)
        >>> mmd(a, a).item(), mmd(a, a + 100).item()
        (0.0, 2.0)
    """
    _check_kernel(kernel, bandwidth)
    if len(a) < 2 or len(b) < 2:
        raise VlaeError(f"MMD needs two samples or more on both sides; got {len(a)} and {len(b)}: use larger batches")
    scale = a.shape[1] ** 0.5 if bandwidth is None else bandwidth

    def similarity(u: Tensor, v: Tensor) -> Tensor:
        # Not by |u|^2 - 2uv + |v|^2: what is left of that in float32 is noise where points are close.
        return KERNELS[kernel](torch.cdist(u, v, compute_mode="donot_use_mm_for_euclid_dist") ** 2, scale)

    def among(u: Tensor) -> Tensor:
        n = len(u)
        return (similarity(u, u).sum() - n) / (n * (n - 1))  # k(u, u) = 1

    return among(a) + among(b) - 2 * similarity(a, b).mean()


def _check_kernel(kernel: str, bandwidth: float | None) -> None:
    if kernel not in tuple(KERNELS):  # a list is no key
        raise VlaeError(f"the kernel must be one of {', '.join(KERNELS)}; got {kernel!r}")
    if bandwidth is not None and not (is_number(bandwidth) and bandwidth > 0):
        raise VlaeError(f"bandwidth must be positive, or None for the square root of z's size; got {bandwidth!r}")


class InfoVAE(Objective):
    """distortion + (1 - alpha) * rate + (alpha + lambda - 1) * MMD^2(q(z), p(z)) (Zhao et al. 2017, arXiv 1706.02262).

    With alpha > 0 the mutual information of x and z is not taxed as much as by the ELBO, and MMD keeps the codes of all
    images together, q(z), at the prior. q(z) is the batch's, one z per image, against as many samples of the prior.
    alpha = 0 and lambda = 1 is the ELBO; alpha = 1 is MMD-VAE. MMD^2 is between 0 and 2 and no nats, hence a large
    lambda. A learned prior learns by the rate alone, so not at all with alpha = 1.

    Args:
        alpha: how much of the rate is taken off, at most 1.
        lambda_: weight of the divergence between q(z) and p(z); alpha + lambda_ - 1 must be 0 or more.
        kernel: "rbf" or "imq", see `mmd`.
        bandwidth: of the kernel; None takes the square root of z's size.
    """

    def __init__(
        self, alpha: float = 0.0, lambda_: float = 1000.0, kernel: str = "rbf", bandwidth: float | None = None
    ):
        super().__init__()
        _check_kernel(kernel, bandwidth)
        require_numbers("InfoVAE", alpha=alpha, lambda_=lambda_)
        if not alpha <= 1 or not alpha + lambda_ - 1 >= 0:
            raise VlaeError(f"InfoVAE needs alpha <= 1 and alpha + lambda_ - 1 >= 0; got {alpha} and {lambda_}")
        self.alpha, self.lambda_, self.kernel, self.bandwidth = alpha, lambda_, kernel, bandwidth

    def floor(self, progress: float) -> None:
        """None: the rate is not what the bound alone asks for."""

    def check(self, model: LatentVariableModel) -> None:
        """Refuses a model without a prior density or without a continuous code."""
        super().check(model)
        if not model.has_bound:
            raise VlaeError(f"a {type(model).__name__} has no prior density to hold q(z) to: train it by ELBO")
        require_continuous(model, "InfoVAE")

    def compute(
        self, model: LatentVariableModel, x: Tensor, progress: float, context: Tensor | None = None
    ) -> tuple[Tensor, Bound]:
        """The loss of images x [B, C, H, W], and their bound."""
        self.check(model)
        bound = model.elbo(x, context=context).whole()
        loss = bound.distortion.mean() + (1 - self.alpha) * bound.rate.mean()
        if self.alpha + self.lambda_ > 1:
            with torch.no_grad():
                prior = model.prior(**given(model.check_context(context, len(x)))).sample((total(len(x)),))
            discrepancy = mmd(whole(in_rows(bound.z)), in_rows(prior), self.kernel, self.bandwidth)
            loss = loss + (self.alpha + self.lambda_ - 1) * discrepancy
        return loss if bound.penalty is None else loss + bound.penalty.mean(), bound

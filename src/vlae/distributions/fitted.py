"""A Gaussian fitted to codes as they come: the prior of autoencoders that are trained without one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlae.distributions.latent import Prior, PriorModule
from vlae.distributions.normal import log_normal
from vlae.errors import VlaeError, require_positive
from vlae.noise import randn

FLOOR = 1e-4  # added to the variances, as a share of their mean: codes that fill no dimension still have a density


class FullGaussian(Prior):
    """N(mean, factor factor^T) over vectors z. `mean` is [D], `factor` lower triangular [D, D]."""

    def __init__(self, mean: Tensor, factor: Tensor):
        self.loc, self.factor = mean, factor
        super().__init__(mean.shape, mean)

    @property
    def mean(self) -> Tensor:
        """[D]."""
        return self.loc

    def noise_of(self, z: Tensor) -> Tensor:
        """factor^-1 (z - mean), [..., D]."""
        centred = (z - self.loc).unsqueeze(-1)
        return torch.linalg.solve_triangular(self.factor, centred, upper=False).squeeze(-1)

    def from_noise(self, noise: Tensor) -> Tensor:
        """mean + factor noise, [..., D]."""
        return self.loc + noise @ self.factor.t()

    def log_prob_per_dimension(self, z: Tensor) -> Tensor:
        """log p(z_i | z_<i) in nats, [..., D]; sums to `log_prob`."""
        return log_normal(self.noise_of(z)) - self.factor.diagonal().log()

    def sample(
        self,
        sample_shape: Sequence[int] = torch.Size(),
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """[*sample_shape, D]; the temperature scales the noise."""
        return self.from_noise(temperature * randn(sample_shape, None, self.event_shape, generator, self.like))


class FittedGaussian(PriorModule):
    """Makes the Gaussian of the codes it was shown, exponentially forgetting: ex-post density estimation.

    Nothing trains the codes to be Gaussian, so this is ad hoc, a way to draw some z after training (Ghosh et al. 2020,
    arXiv 1903.12436, section 3.3). Before it has seen any it is the standard normal.

    Args:
        latent_dim: D.
        decay: the weight of a batch falls by this factor with each batch after it.
    """

    center: Tensor
    covariance: Tensor
    weight: Tensor

    def __init__(self, latent_dim: int, decay: float = 0.99):
        super().__init__((latent_dim,))
        require_positive("latent_dim", latent_dim)
        if not 0 <= decay < 1:
            raise VlaeError(f"decay of the fitted Gaussian must be at least 0 and less than 1; got {decay}")
        self.decay = decay
        self.register_buffer("center", torch.zeros(latent_dim))
        self.register_buffer("covariance", torch.eye(latent_dim))
        self.register_buffer("weight", torch.zeros(()))  # of all batches seen, up to 1

    @torch.no_grad()
    def update(self, z: Tensor) -> None:
        """Enters a batch of codes z [B, D]; one that is not finite is left out."""
        if not bool(torch.isfinite(z).all()):
            return
        z = z.to(self.center.dtype)
        mean = z.mean(0)
        self.weight.mul_(self.decay).add_(1 - self.decay)
        share = (1 - self.decay) / self.weight  # of this batch among all; of the first it is 1
        with torch.autocast(z.device.type, enabled=False):
            # Two groups' covariances and the distance of their means add up without cancellation.
            gap, own = mean - self.center, (z - mean).t() @ (z - mean) / len(z)
            self.covariance.lerp_(own, share).add_(share * (1 - share) * gap.outer(gap))
        self.center.lerp_(mean, share)

    def forward(self) -> FullGaussian:
        """The Gaussian, a distribution with event shape [latent_dim]."""
        covariance = self.covariance.double()
        floor = FLOOR * covariance.diagonal().mean().clamp(min=torch.finfo(self.center.dtype).eps)
        factor = torch.linalg.cholesky(covariance + floor * torch.eye(len(covariance)).to(covariance))
        return FullGaussian(self.center, factor.to(self.center.dtype))

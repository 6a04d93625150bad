"""The inverse autoregressive flow posterior (Kingma et al. 2016, arXiv 1606.04934)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn import functional as F

from vlae.distributions.bounded import soft_bounded_log
from vlae.distributions.flows import check_order
from vlae.distributions.normal import log_normal
from vlae.errors import VlaeError, require_positive
from vlae.nn.masked import masked_mlp
from vlae.noise import Generators, randn

OPEN_GATE = 2.0  # a new gate lets most of z through, sigmoid(2) = 0.88 (the paper: start at 1 to 2)


class Step(Protocol):
    """One step z -> shift + exp(log_scale) z. Both depend on the dimensions that come earlier in `order` only."""

    order: Sequence[int]

    def __call__(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """z [..., B, D] and the context [B, F] -> shift and log-scale [..., B, D]."""
        ...


class IAFStep(nn.Module):
    """A MADE with context that computes the shift and scale of every dimension from those before it.

    Args:
        latent_dim: dimensions of z.
        context: numbers per image that it reads beside z.
        hidden: widths of the hidden layers.
        gated: z -> sigmoid(s) z + (1 - sigmoid(s)) m, the paper's; else m + exp(s) z. s is soft-bounded, so that the
            step can be undone: the least gate is 0.7%.
        backwards: the last dimension comes first.
    """

    def __init__(self, latent_dim: int, context: int, hidden: Sequence[int], gated: bool, backwards: bool):
        super().__init__()
        self.order = list(range(latent_dim))[:: -1 if backwards else 1]
        self.gated = gated
        before = torch.ones(latent_dim, latent_dim).bool().triu(1) if backwards else _earlier(latent_dim)
        sees = torch.cat([before, torch.ones(latent_dim, context).bool()], 1).repeat_interleave(2, 0)
        self.made = masked_mlp(sees, hidden)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """z [..., B, D] and the context [B, F] -> shift and log-scale [..., B, D]."""
        inputs = torch.cat([z, context.expand(*z.shape[:-1], -1)], -1)
        m, s = self.made(inputs).to(z.dtype).unflatten(-1, (-1, 2)).unbind(-1)
        s = soft_bounded_log(s)
        if not self.gated:
            return m, s
        s = s + OPEN_GATE
        return torch.sigmoid(-s) * m, F.logsigmoid(s)


def _earlier(latent_dim: int) -> Tensor:
    return torch.ones(latent_dim, latent_dim).bool().tril(-1)


def version(z: Tensor) -> int:
    """How often z was changed in place; 0 of tensors of the inference mode, which don't count it."""
    return 0 if z.is_inference() else z._version


class IAFPosterior(Distribution):
    r"""z = f_T(... f_1(z_0)), z_0 ~ N(mean, diag(stddev^2)), for autoregressive steps given the context.

    .. math:: \log q(z|x) = \log N(z_0; mean, stddev^2) - \sum_t \sum_i \log scale_{t,i}(z_{t-1}, h)

    Sampling takes one pass per step. log q of the latest sample is known from drawing it: `log_prob` and
    `log_prob_per_dimension` recognise that tensor (the very object, unchanged). Any other z is inverted exactly, one
    dimension after the other, D passes per step. Batch shape [B], event shape [D].

    Args:
        mean: of z_0, [B, D].
        log_stddev: of z_0, [B, D], used as it is.
        context: what the steps read beside z, [B, F].
        steps: from the first to the last.
    """

    arg_constraints: dict = {}
    support = constraints.real
    has_rsample = True

    def __init__(self, mean: Tensor, log_stddev: Tensor, context: Tensor, steps: Sequence[Step]):
        self.base_mean, self.base_log_stddev = mean, log_stddev
        self.context, self.steps = context, steps
        self._latest: tuple[Tensor, int, Tensor] | None = None
        super().__init__(mean.shape[:1], mean.shape[1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """f(mean of z_0), [B, D]: the code of an image without noise. Not the expected z, which has no closed form."""
        return self._forward(self.base_mean)[0]

    def rsample(self, sample_shape: Sequence[int] = torch.Size(), generator: Generators = None) -> Tensor:
        """Reparametrised samples [*sample_shape, B, D]; `generator` may be one per image."""
        noise = randn(sample_shape, self.base_mean.shape[0], self.event_shape, generator, self.base_mean)
        z, log_scales = self._forward(self.base_mean + self.base_log_stddev.exp() * noise)
        self._latest = z, version(z), log_normal(noise) - self.base_log_stddev - log_scales
        return z

    def sample(self, sample_shape: Sequence[int] = torch.Size(), generator: Generators = None) -> Tensor:
        """As `rsample`, without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    def log_prob_per_dimension(self, z: Tensor) -> Tensor:
        """Each dimension's share of log q(z|x) in nats, [..., B, D]; sums to `log_prob`."""
        if self._latest is not None and z is self._latest[0] and version(z) == self._latest[1]:
            return self._latest[2]
        base, log_scales = self._inverse(z)
        noise = (base - self.base_mean) * (-self.base_log_stddev).exp()
        return log_normal(noise) - self.base_log_stddev - log_scales

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z|x) in nats, [..., B]."""
        return self.log_prob_per_dimension(z).sum(-1)

    def _forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z_0 -> z and each dimension's sum of log-scales, [..., B, D]."""
        total = torch.zeros_like(z)
        for step in self.steps:
            shift, log_scale = step(z, self.context)
            z, total = shift + log_scale.exp() * z, total + log_scale
        return z, total

    def _inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z -> z_0 and each dimension's sum of log-scales, [..., B, D]."""
        total = torch.zeros_like(z)
        for step in reversed(self.steps):
            known = [torch.zeros_like(z[..., 0])] * z.shape[-1]
            for i in step.order:  # dimensions that are not known yet stay 0: nothing that counts depends on them
                shift, log_scale = step(torch.stack(known, -1), self.context)
                known[i] = (z[..., i] - shift[..., i]) * (-log_scale[..., i]).exp()
            z = torch.stack(known, -1)
            total = total + step(z, self.context)[1]
        return z, total


class IAFHead(nn.Module):
    """Makes IAF posteriors from an encoder's features: mean, log-scale and the context of the steps.

    Args:
        latent_shape: (D,).
        hidden_features: the default for `context`.
        steps: how many MADE steps.
        hidden: widths of each MADE's hidden layers.
        order: "reversed" flips the order between steps, "same" keeps it.
        context: how many numbers per image the steps read beside z; None takes `hidden_features`.
        gated: the paper's gate; else shift and soft-bounded scale.
    """

    def __init__(
        self,
        latent_shape: Sequence[int],
        hidden_features: int,
        steps: int = 2,
        hidden: Sequence[int] = (256, 256),
        order: str = "reversed",
        context: int | None = None,
        gated: bool = True,
    ):
        super().__init__()
        if len(latent_shape) != 1:
            raise VlaeError(f"an IAF posterior needs a latent vector; z has shape {list(latent_shape)}")
        context = hidden_features if context is None else context
        check_order(order)
        require_positive("latent_dim", *latent_shape)
        require_positive("steps of an IAF posterior", steps)
        require_positive("context of an IAF posterior", context)
        if hidden:
            require_positive("hidden widths of an IAF posterior", *hidden)
        (self.latent_dim,) = latent_shape
        self.features_needed = 2 * self.latent_dim + context
        self.steps = nn.ModuleList(
            IAFStep(self.latent_dim, context, hidden, gated, backwards=order == "reversed" and step % 2 == 1)
            for step in range(steps)
        )

    def forward(self, features: Tensor) -> IAFPosterior:
        """q(z|x) from features [B, features_needed]."""
        mean, s, context = features.tensor_split([self.latent_dim, 2 * self.latent_dim], dim=1)
        return IAFPosterior(mean, soft_bounded_log(s), context, cast(Sequence[Step], list(self.steps)))

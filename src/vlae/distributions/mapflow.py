"""A flow prior over maps: autoregressive steps whose shifts and scales a causal PixelCNN computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from vlae.distributions.bounded import soft_bounded_log
from vlae.distributions.flows import check_order
from vlae.distributions.latent import Prior, PriorModule
from vlae.distributions.normal import log_normal
from vlae.distributions.scan import Pixels, Visit
from vlae.errors import VlaeError, require_positive
from vlae.nn.cached import Evaluator, evaluator
from vlae.nn.pixelcnn import GatedPixelCNN, PlainPixelCNN, make_trunk
from vlae.nn.wavefront import Schedule
from vlae.noise import randn

Trunk = GatedPixelCNN | PlainPixelCNN


class MapStep(NamedTuple):
    """One step of a map flow, from z to noise: (z - mean) / scale in raster order or, if `flipped`, from the end."""

    network: Trunk
    flipped: bool

    def turn(self, z: Tensor) -> Tensor:
        """Into the order of the network, and back: flips channels, rows and columns, or none."""
        return z.flip(-3, -2, -1) if self.flipped else z

    def parameters(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-scales of all values of z [B, C, H, W], which is in the network's order, given those before."""
        return affine(self.network(seen(z)).to(z.dtype).movedim(2, -1))


def seen(z: Tensor) -> Tensor:
    """z as the networks read it: large values compressed, without which samples grow from pixel to pixel, without end.

    A network's outputs grow as fast as its inputs, and in sampling its outputs are its next inputs.
    """
    return z.asinh()


def affine(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """A network's numbers [..., 2], or [..., 1] if it shifts only, as means and soft-bounded log-scales [...]."""
    mean, *s = parameters.unbind(-1)
    return mean, soft_bounded_log(s[0]) if s else torch.zeros_like(mean)


class MapFlow(Prior):
    """The distribution of z = f(eps), eps ~ N(0, I), over maps [C, H, W], as `FlowPrior` is over vectors.

    log p(z) takes one pass per step. Sampling inverts one step after the other, each along its wavefront.
    """

    def __init__(self, steps: Sequence[MapStep], shape: Sequence[int], like: Tensor):
        self.steps = steps
        super().__init__(shape, like)

    def _to_noise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z [..., C, H, W] -> eps and each value's share of the log-determinant, of the same shape."""
        shape = z.shape
        z = z.reshape(-1, *self.event_shape)
        total = torch.zeros_like(z)
        for step in self.steps:
            z = step.turn(z)
            mean, log_scale = step.parameters(z)
            z = step.turn((z - mean) * (-log_scale).exp())
            total = total - step.turn(log_scale)
        return z.view(shape), total.view(shape)

    def noise_of(self, z: Tensor) -> Tensor:
        """eps = f^-1(z), [..., C, H, W]."""
        return self._to_noise(z)[0]

    def from_noise(self, noise: Tensor) -> Tensor:
        """z = f(eps), [..., C, H, W], one step after the other, each along its wavefront. No gradients."""
        with torch.inference_mode(), self._full_precision():
            z = noise.reshape(-1, *self.event_shape)
            for step in reversed(self.steps):
                z = step.turn(self._invert(step, step.turn(z)))
        return z.view(noise.shape).clone()  # an ordinary tensor again

    def log_prob_per_dimension(self, z: Tensor) -> Tensor:
        """Each value's log N(eps_i) + its share of the log-determinant, nats, [..., C, H, W]; sums to `log_prob`."""
        eps, share = self._to_noise(z)
        return log_normal(eps) + share

    def sample(
        self,
        sample_shape: Sequence[int] = torch.Size(),
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """[*sample_shape, C, H, W]: f of noise that is scaled by the temperature. No gradients."""
        return self.from_noise(temperature * randn(sample_shape, None, self.event_shape, generator, self.like))

    def _invert(self, step: MapStep, eps: Tensor) -> Tensor:
        """mean + scale * eps, values [B, C, H, W] in the network's order: each as soon as those before it are known."""
        schedule = self._schedule()
        noise = schedule.arrange(eps)

        def visit(sites: Pixels, conditional: Normal) -> Tensor:
            return conditional.loc + conditional.scale * noise[sites.step][:, sites.channel]

        return self._walk([step], schedule, visit, len(eps))

    def conditionals(self, z: Tensor) -> Normal:
        """p(z_i | z_<i) for all values at once, [..., C, H, W]: steps in one order compose to an affine map of each."""
        self._require_one_order()
        eps, share = self._to_noise(z)
        scale = torch.exp(-share)
        return Normal(z - eps * scale, scale, validate_args=False)

    def scan(self, visit: Visit, count: int) -> Tensor:
        """Visits the values along the wavefront (`Pixels`): [count, C, H, W] made of what `visit` returns."""
        self._require_one_order()
        with torch.inference_mode(), self._full_precision():
            z = self._walk(self.steps, self._schedule(), visit, count)
        return z.clone()

    def _full_precision(self) -> torch.autocast:
        """The evaluators' buffers have the networks' own dtype, so mixed precision has to stay outside."""
        return torch.autocast(self.like.device.type, enabled=False)

    def _schedule(self) -> Schedule:
        _, height, width = self.event_shape
        slope = max((step.network.receptive_field.slope for step in self.steps), default=1)
        return Schedule.of(height, width, slope)

    def _walk(self, steps: Sequence[MapStep], schedule: Schedule, visit: Visit, count: int) -> Tensor:
        """The scan through steps of one order, whose composition gives each value a mean and a scale."""
        context = self.like.new_zeros(count, 0, *self.event_shape[1:])
        if not count:
            return context.new_zeros(0, *self.event_shape)
        networks: list[Evaluator] = [evaluator(step.network, context, self.event_shape, schedule) for step in steps]
        values: list[Tensor] = []
        for at in schedule.steps:
            for network in networks:
                network.advance(at)
            if not at.count:
                continue
            chosen: list[Tensor] = []
            for channel in range(self.event_shape[0]):
                maps = [affine(network.parameters(channel)) for network in networks]
                mean, log_scale = context.new_zeros(count, at.count), context.new_zeros(count, at.count)
                for shift, s in reversed(maps):
                    mean, log_scale = shift + s.exp() * mean, log_scale + s
                conditional = Normal(mean, log_scale.exp(), validate_args=False)
                value = visit(Pixels(at.index, channel, at.rows, at.columns), conditional)
                chosen.append(value)
                for network, (shift, s) in zip(networks, maps, strict=True):
                    network.put(channel, seen(value))
                    value = (value - shift) * (-s).exp()
            values.append(torch.stack(chosen, 1))
        return schedule.restore(values)

    def _require_one_order(self) -> None:
        if any(step.flipped for step in self.steps):
            raise VlaeError(
                "this map flow reverses its order between steps, so z_i given z_<i has no closed form: "
                "train one with flow_order='same' (--model.flow_order same) to scan and code it; sample() takes both"
            )


class MapFlowPrior(PriorModule):
    """Makes the flow prior over maps that the paper has for CIFAR-10 (Chen et al. 2017, arXiv 1611.02731).

    Args:
        latent_shape: (C, H, W).
        steps: how many PixelCNNs (the paper: 6).
        layers: of each PixelCNN after its input layer (the paper: 2 hidden layers).
        channels: of each PixelCNN (the paper: 128).
        kernel_size: of each PixelCNN.
        affine: shift and (soft-bounded) scale; False shifts only ("mean-only"), log-determinant 0.
        order: "reversed" turns channels, rows and columns around between steps; "same" keeps one order, so that `scan`
            is possible.
        reverse_every: after how many steps the order is reversed (the paper: 2, "every other").
        stacks: "two" (gated), "slanted" or "plain".
    """

    def __init__(
        self,
        latent_shape: Sequence[int],
        steps: int = 4,
        layers: int = 2,
        channels: int = 64,
        kernel_size: int = 3,
        affine: bool = True,
        order: str = "reversed",
        reverse_every: int = 1,
        stacks: str = "two",
    ):
        super().__init__(latent_shape)
        if len(self.latent_shape) != 3:
            raise VlaeError(f"a map flow needs latent maps (C, H, W); z has shape {list(self.latent_shape)}")
        check_order(order)
        require_positive("steps of a map flow", steps)
        require_positive("reverse_every", reverse_every)
        self.flipped = [order == "reversed" and step // reverse_every % 2 == 1 for step in range(steps)]
        networks = [
            make_trunk(
                stacks,
                image_channels=self.latent_shape[0],
                parameters=2 if affine else 1,
                layers=layers,
                kernel_size=kernel_size,
                channels=channels,
            )
            for _ in range(steps)
        ]
        with torch.no_grad():  # near the standard normal at the start, where a posterior starts too
            for parameter in (p for network in networks for p in network.head.output.parameters()):
                parameter.mul_(0.1)
        self.networks = nn.ModuleList(networks)

    def forward(self) -> MapFlow:
        """The prior, a distribution with event shape `latent_shape`."""
        steps = [MapStep(network, flipped) for network, flipped in zip(self.networks, self.flipped, strict=True)]  # type: ignore[arg-type]
        return MapFlow(steps, self.latent_shape, self.like)

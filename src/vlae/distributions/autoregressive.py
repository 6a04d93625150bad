"""Autoregressive likelihoods: images whose pixels are visited in a scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vlae.distributions.likelihoods import Likelihood, Pixelwise, given_pixels
from vlae.distributions.scan import Pixels, Visit, greedy
from vlae.errors import VlaeError
from vlae.nn.cached import FullForward, evaluator
from vlae.nn.one_image import on_one_image
from vlae.nn.receptive import ReceptiveField
from vlae.nn.wavefront import Schedule
from vlae.noise import Generators, rand


class Autoregressive(Distribution):
    """p(x|z) = prod over sub-pixels of p(x_k | earlier ones in the window, z): batch shape [B], event shape [C, H, W].

    Args:
        network: maps x [B, C, H, W] and the context to parameters [B, C, P, H, W]; has a `receptive_field`.
        likelihood: what the parameters mean.
        context: what z was decoded to, [B, F, H, W].
        image_shape: (C, H, W).
        temperature: of each conditional.
    """

    arg_constraints: dict = {}

    def __init__(
        self,
        network: nn.Module,
        likelihood: Likelihood,
        context: Tensor,
        image_shape: Sequence[int],
        temperature: float = 1.0,
    ):
        self.network, self.likelihood, self.context = network, likelihood, context
        self.temperature = temperature
        super().__init__(context.shape[:1], torch.Size(image_shape), validate_args=False)

    def conditionals(self, x: Tensor) -> Pixelwise:
        """p(x_k | earlier ones in the window, z) for all sub-pixels of x [B, C, H, W] at once: one parallel pass."""
        parameters = self.network(x, self.context).movedim(2, -1).to(x.dtype)
        return self.likelihood(parameters, self.temperature)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x|z) in nats per image, [B]; x may be one image for all z, [1, C, H, W], which takes less time."""
        pixels = self.conditionals(x) if len(x) == len(self.context) else self._conditionals_of_one(x)
        return pixels.log_prob(x.expand(*self.batch_shape, *self.event_shape)).flatten(1).sum(1)

    def _conditionals_of_one(self, x: Tensor) -> Pixelwise:
        """As `conditionals`, of one image x [1, C, H, W] under all z: [B, C, H, W]."""
        parameters = on_one_image(self.network, x)(self.context).movedim(2, -1).to(x.dtype)
        return self.likelihood(parameters, self.temperature)

    def schedule(self, method: str = "wavefront") -> Schedule:
        """The order of a scan: "wavefront", as many pixels at once as the receptive field allows, or "raster"."""
        _, height, width = self.event_shape
        if method not in ("wavefront", "raster"):
            raise VlaeError(f"method must be 'wavefront' or 'raster'; got {method!r}")
        field = cast(ReceptiveField, self.network.receptive_field)
        return Schedule.of(height, width, width if method == "raster" else field.slope)

    def scan(self, visit: Visit, method: str = "wavefront") -> Tensor:
        """Visits all sub-pixels in a valid order and returns the image [B, C, H, W] made of the values handed back.

        `visit(sites, conditional)` gets the sites of a step (`Pixels`) and their conditional distribution [B, n], and
        returns their values [B, n]. "wavefront" visits many pixels at once and computes each activation once; "raster"
        is the obvious loop, one pixel and one full pass of the network at a time. Both are exact. No gradients.
        """
        if not self.batch_shape[0]:
            return self.context.new_zeros(*self.batch_shape, *self.event_shape)
        # inference_mode is a quarter faster than no_grad at batch 1, where the calls count. The evaluators' buffers
        # have the network's own dtype, so mixed precision has to stay outside.
        with torch.inference_mode(), torch.autocast(self.context.device.type, enabled=False):
            x = self._scan(visit, method)
        return x.clone()  # an ordinary tensor again

    def _scan(self, visit: Visit, method: str) -> Tensor:
        schedule = self.schedule(method)
        context = self.context.to(next(self.network.parameters(), self.context).dtype)
        network = (
            FullForward(self.network, context, self.event_shape)
            if method == "raster"
            else evaluator(self.network, context, self.event_shape, schedule)
        )
        values: list[list[Tensor]] = []
        for step in schedule.steps:
            network.advance(step)
            if not step.count:
                continue
            values.append([])
            for channel in range(self.event_shape[0]):
                conditional = self.likelihood(network.parameters(channel), self.temperature)
                chosen = visit(Pixels(step.index, channel, step.rows, step.columns), conditional)
                if chosen.shape != (*self.batch_shape, step.count):
                    expected = [*self.batch_shape, step.count]
                    raise VlaeError(f"a visit must return one value per site, {expected}; got {list(chosen.shape)}")
                values[-1].append(chosen.to(context.dtype))
                network.put(channel, values[-1][-1])
        return schedule.restore([torch.stack(channels, 1) for channels in values])

    def sample(
        self,
        sample_shape: Sequence[int] = torch.Size(),
        generator: Generators = None,
        uniforms: Tensor | None = None,
        method: str = "wavefront",
    ) -> Tensor:
        """One image per z, [B, C, H, W], by the inverse CDF of `uniforms` [B, C, H, W] (drawn if not given).

        The same uniforms give the same image whatever the method; values of a density differ in the last bits.
        """
        if len(sample_shape):
            raise VlaeError("an autoregressive decoder draws one image per z: repeat z to draw several")
        u = self.schedule(method).arrange(self._uniforms(generator, uniforms))
        return self.scan(lambda sites, conditional: conditional.icdf(u[sites.step][:, sites.channel]), method)

    def complete(
        self,
        known: Tensor,
        mask: Tensor,
        generator: Generators = None,
        uniforms: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Keeps the given pixels and samples the others in scan order: images [B, C, H, W] and log-weights [B].

        The log-weight is sum log p(known pixel | what comes before it, z) in nats. A given pixel that no unknown pixel
        comes before is simply conditioned on: if that holds for all of them, the completion is an exact sample of
        p(unknown | known, z), and the log-weight is log p(known | z). Given pixels *after* unknown ones (in the scan,
        and within its window) are kept too, but the unknown ones were sampled without regard to them; then the images
        are importance samples of p(unknown, known | z) with these weights (see `vlae.sampling.complete`).

        Args:
            known: images [B, C, H, W] in [0, 1] that hold the given pixels; what is under unknown ones is ignored.
            mask: bool, True where a pixel is given, of any shape that broadcasts to [B, C, H, W].
            generator: noise for the unknown pixels.
            uniforms: or the noise itself, as in `sample`.
        """
        known, mask = given_pixels(known, mask, (*self.batch_shape, *self.event_shape))
        known = known.to(self.context.dtype)
        self.likelihood.check(known)
        schedule, u = self.schedule(), self._uniforms(generator, uniforms)
        kept, given, noise = schedule.arrange(known), schedule.arrange(mask), schedule.arrange(u)
        log_weight = known.new_zeros(self.batch_shape)

        def visit(sites: Pixels, conditional: Pixelwise) -> Tensor:
            old, keep, uniform = (values[sites.step][:, sites.channel] for values in (kept, given, noise))
            log_weight.add_(torch.where(keep, conditional.log_prob(old), 0).sum(1))
            return torch.where(keep, old, conditional.icdf(uniform))

        return self.scan(visit), log_weight

    def _uniforms(self, generator: Generators, uniforms: Tensor | None) -> Tensor:
        """Noise for `sample` and `complete`, one number per sub-pixel."""
        shape = (*self.batch_shape, *self.event_shape)
        if uniforms is None:
            return rand((), self.batch_shape[0], self.event_shape, generator, self.context)
        if uniforms.shape != shape:
            raise VlaeError(f"uniforms must be one per sub-pixel, {list(shape)}; got {list(uniforms.shape)}")
        return uniforms

    @property
    def mode(self) -> Tensor:
        """The greedy image [B, C, H, W]: each site's most likely value given those before it, in scan order."""
        return self.scan(greedy)

    @property
    def reconstruction(self) -> Tensor:
        """The one image to show, [B, C, H, W]: the greedy one."""
        return self.mode

    @property
    def mean(self) -> Tensor:
        """An autoregressive distribution has no mean in closed form: raises with advice."""
        raise VlaeError(
            "an autoregressive decoder has no closed-form mean: use .mode (greedy, deterministic) or average samples"
        )

"""Autoregressive likelihoods: images whose pixels are visited in a scan."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vlae.distributions.likelihoods import Likelihood
from vlae.distributions.noise import Generators, rand
from vlae.distributions.scan import Pixels, Visit, greedy, slope_of, wavefront
from vlae.errors import VlaeError


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

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x|z) in nats per image, [B]: one parallel pass."""
        parameters = self.network(x, self.context).movedim(2, -1).to(x.dtype)
        return self.likelihood(parameters, self.temperature).log_prob(x).flatten(1).sum(1)

    @torch.no_grad()
    def scan(self, visit: Visit, method: str = "wavefront") -> Tensor:
        """Visits all sub-pixels in a valid order and returns the image [B, C, H, W] made of the values handed back.

        `visit(sites, conditional)` gets the sites of a step (`Pixels`) and their conditional distribution [B, n], and
        returns their values [B, n]. "wavefront" visits many pixels at once, "raster" one at a time; both are exact.
        """
        channels, height, width = self.event_shape
        x = self.context.new_zeros(*self.batch_shape, *self.event_shape)
        slope = slope_of(method, width, self.network.receptive_field.slope)  # type: ignore[union-attr, arg-type]
        for rows, columns in wavefront(height, width, slope):
            for channel in range(channels):
                sites = Pixels(channel, rows, columns)
                parameters = self.network(x, self.context)[:, channel, :, rows, columns].movedim(1, -1)
                x[sites.index] = visit(sites, self.likelihood(parameters, self.temperature))
        return x

    def sample(
        self,
        sample_shape: Sequence[int] = torch.Size(),
        generator: Generators = None,
        uniforms: Tensor | None = None,
        method: str = "wavefront",
    ) -> Tensor:
        """One image per z, [B, C, H, W], by the inverse CDF of `uniforms` [B, C, H, W] (drawn if not given).

        The same uniforms give the same image whatever the method.
        """
        if len(sample_shape):
            raise VlaeError("an autoregressive decoder draws one image per z: repeat z to draw several")
        if uniforms is None:
            uniforms = rand((), self.batch_shape[0], self.event_shape, generator, self.context)
        elif uniforms.shape != (*self.batch_shape, *self.event_shape):
            expected = [*self.batch_shape, *self.event_shape]
            raise VlaeError(f"uniforms must be one per sub-pixel, {expected}; got {list(uniforms.shape)}")
        return self.scan(lambda sites, conditional: conditional.icdf(uniforms[sites.index]), method)

    @property
    def mode(self) -> Tensor:
        """The greedy image [B, C, H, W]: each site's most likely value given those before it, in scan order."""
        return self.scan(greedy)

    @property
    def mean(self) -> Tensor:
        """An autoregressive distribution has no mean in closed form: raises with advice."""
        raise VlaeError(
            "an autoregressive decoder has no closed-form mean: use .mode (greedy, deterministic) or average samples"
        )

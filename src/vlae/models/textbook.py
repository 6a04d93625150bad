"""The names of a textbook: `from_config`, `model(x)` and `compute_loss(x)` for the classic models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from torch import Tensor

from vlae.distributions.posteriors import DiagonalGaussian
from vlae.errors import VlaeError, require_positive
from vlae.models.base import LatentVariableModel
from vlae.models.context import given


class VAEOutput(NamedTuple):
    """What `model(x)` gives: images like the input, and the posterior's mean, log-variance and a sample [B, D]."""

    reconstruction: Tensor
    mu: Tensor
    log_var: Tensor
    z: Tensor


class VAELoss(NamedTuple):
    """What `compute_loss` gives: scalars in nats per image, averaged over the batch."""

    loss: Tensor
    reconstruction_loss: Tensor
    kl_loss: Tensor


def shape_and_options(config: Mapping[str, Any]) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """The image shape that a textbook's configuration means, and the other keys under this package's names.

    `input_dim` (of "mlp": a square number of pixels, or any: then one row), or `in_channels` and `image_size` (an
    integer or [H, W]; 28 for one channel and 32 for more if not given) become the shape; `hidden_dim` or `hidden_dims`
    become `widths`, `num_classes` becomes `classes`.
    """
    rest = dict(config)
    architecture = rest.get("architecture", "mlp")
    if architecture not in ("mlp", "conv", "resnet"):
        raise VlaeError(f"architecture must be 'mlp', 'conv' or 'resnet'; got {architecture!r}")
    for names in (("hidden_dim", "hidden_dims", "widths"), ("num_classes", "classes")):
        if len(twins := [name for name in names if name in rest]) > 1:
            raise VlaeError(f"{' and '.join(twins)} say the same: give one of them")
    if "input_dim" in rest and (sizes := rest.keys() & {"in_channels", "image_size"}):
        raise VlaeError(f"input_dim and {sizes.pop()} say the same: give input_dim, or in_channels and image_size")
    if "hidden_dim" in rest:
        rest["widths"] = [rest.pop("hidden_dim")]
    if "hidden_dims" in rest:
        widths = rest.pop("hidden_dims")
        if not isinstance(widths, Sequence) or isinstance(widths, str):
            raise VlaeError(f"hidden_dims is a list of widths, such as [32, 64]; got {widths!r}")
        rest["widths"] = list(widths)
    if "num_classes" in rest:
        rest["classes"] = rest.pop("num_classes")
    if architecture == "mlp" and not rest.keys() & {"in_channels", "image_size"}:
        pixels = rest.pop("input_dim", 784)
        require_positive("input_dim", pixels)
        side = math.isqrt(pixels)
        return (1, side, side) if side * side == pixels else (1, 1, pixels), rest
    channels = rest.pop("in_channels", 1)
    size = rest.pop("image_size", 28 if channels == 1 else 32)
    sides = (size, size) if isinstance(size, int) else size
    if not (isinstance(sides, Sequence) and len(sides) == 2 and all(isinstance(side, int) for side in sides)):
        raise VlaeError(f"image_size is a whole number of pixels, or [height, width]; got {size!r}")
    return (channels, *sides), rest


class Textbook(LatentVariableModel):
    """The textbook's verbs, for models with a factorised decoder. Images may come flattened, [B, C * H * W]."""

    beta: float = 1.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Builds the model from a textbook's names (see `shape_and_options`) and any of its own arguments.

        Example:
            >>> import vlae
            >>> settings = {"architecture": "mlp", "input_dim": 784, "hidden_dim": 400, "latent_dim": 20, "beta": 1.0}
            >>> model = vlae.VAE.from_config(settings)
            >>> import torch
            >>> model(torch.zeros(2, 784)).reconstruction.shape
            torch.Size([2, 784])
        """
        shape, options = shape_and_options(config)
        known = cls.argument_names()
        options.setdefault("architecture", "mlp")
        known.remove("image_shape")  # the names of a textbook say it
        unknown = [key for key in options if key not in known]
        if unknown == ["architecture"] and "architecture" not in config:
            unknown = []
            del options["architecture"]
        if unknown:
            sizes = ["in_channels", "image_size"] + ["input_dim"] * (options.get("architecture") == "mlp")
            names = ", ".join(sorted({*known, *sizes, "hidden_dim", "hidden_dims"}))
            raise VlaeError(f"unknown key {unknown[0]!r} for {cls.__name__}.from_config; it takes {names}")
        return cls(shape, **options)  # type: ignore[call-arg]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Any:
        """x [B, C, H, W], or flattened -> the mean reconstruction in x's shape, mu, log_var and z."""
        images = self.images(x)
        self.check(images)
        told = given(self.check_context(context, len(images)))
        q = self.encode(images, **told)
        if not isinstance(q, DiagonalGaussian):
            raise VlaeError(
                f"mu and log_var are a Gaussian's, and this posterior is a {type(q).__name__}: use encode(x)"
            )
        z = q.rsample()
        return VAEOutput(self.decode(z, **told).reconstruction.reshape(x.shape), q.mean, 2 * q.log_stddev, z)

    def images(self, x: Tensor) -> Tensor:
        """Flattened images [B, C * H * W] back to [B, C, H, W]; any other shape is left for `check` to judge."""
        flat = isinstance(x, Tensor) and x.ndim == 2 and x.shape[1] == math.prod(self.image_shape)
        return x.reshape(-1, *self.image_shape) if flat else x

    def compute_loss(self, x: Tensor, beta: float | None = None, context: Tensor | None = None) -> VAELoss:
        """distortion + beta * rate (and the model's penalty, if it has one), nats per image averaged over the batch.

        `beta=None` takes the model's own.
        """
        bound = self.elbo(self.images(x), context=context)
        distortion, rate = bound.distortion.mean(), bound.rate.mean()
        loss = distortion + (self.beta if beta is None else beta) * rate
        return VAELoss(loss if bound.penalty is None else loss + bound.penalty.mean(), distortion, rate)

"""The adversarial term: a discriminator that is trained beside the model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from vlae import processes
from vlae.errors import VlaeError, is_number, require_positive
from vlae.models.base import Bound, LatentVariableModel
from vlae.models.context import given
from vlae.models.encoders import ImageShape
from vlae.models.latents import each
from vlae.objectives.schedules import Schedule
from vlae.objectives.terms import Term, mean_image, no_mean


class Discriminator(nn.Module):
    """The logit of an image being real: stride-2 convolutions that double the maps, without normalisation.

    Args:
        image_shape: (C, H, W), any size.
        channels: maps of the first stage.
        stages: how many.
    """

    def __init__(self, image_shape: ImageShape, channels: int = 32, stages: int = 3):
        super().__init__()
        before, height, width = image_shape
        layers: list[nn.Module] = []
        for stage in range(stages):
            maps = channels * 2**stage
            layers += [nn.Conv2d(before, maps, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
            before, height, width = maps, (height + 1) // 2, (width + 1) // 2
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * height * width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W] in [0, 1] -> logits [B]."""
        return self.layers(2 * x - 1).squeeze(1)


class Adversarial(Term):
    """VAE-GAN (Larsen et al. 2016, arXiv 1512.09300): mean images are to pass for real ones, those of z ~ p(z) too.

    The term is the non-saturating loss -log D(mean of p(x|z)) in nats, averaged over half codes of the batch's images
    and half samples of the prior. As in the paper it moves the decoder (of a VQ-VAE also a codebook that is learned by
    gradients), not the encoder; the prior, if it is learned, doesn't see it either. It costs two more passes of the
    decoder. The paper's reconstruction by the discriminator's features is `Perceptual`'s business. For grey or colour
    images: the mean of binary pixels is grey, which any discriminator can tell from black and white.

    The discriminator is part of the objective, never of the model: it has an Adam of its own, takes one step after each
    of the model's on the same images, and travels with checkpoints, its optimiser's state too.

    Args:
        weight: a number or a schedule. While it is 0 the discriminator rests.
        channels: maps of the discriminator's first stage.
        stages: stride-2 stages of the discriminator.
        lr: the discriminator's learning rate.
        betas: of its Adam.
    """

    discriminator: Discriminator
    optimizer: torch.optim.Adam

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        channels: int = 32,
        stages: int = 3,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
    ):
        super().__init__(weight)
        require_positive("channels of the discriminator", channels)
        require_positive("stages of the discriminator", stages)
        two = isinstance(betas, tuple | list) and len(betas) == 2
        if not (is_number(lr) and lr > 0 and two and all(is_number(beta) and 0 <= beta < 1 for beta in betas)):
            raise VlaeError(f"the discriminator needs lr > 0 and two betas in [0, 1); got {lr!r} and {betas!r}")
        self.channels, self.stages, self.lr, self.betas = channels, stages, lr, tuple(betas)
        self._seen: tuple[Tensor, Tensor] | None = None

    def check(self, model: LatentVariableModel) -> None:
        """Refuses autoregressive models."""
        if model.autoregressive:
            raise VlaeError(no_mean(model))

    def prepare(self, model: LatentVariableModel) -> None:
        """A new discriminator for the model's images."""
        self.check(model)
        discriminator = Discriminator(model.image_shape, self.channels, self.stages)
        self.discriminator = discriminator.to(next(model.parameters()))
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), self.lr, self.betas)  # type: ignore[arg-type]

    def learned(self) -> list[nn.Parameter]:
        """Nothing by the model's optimiser: the discriminator has one of its own."""
        return []

    @property
    def prepared(self) -> bool:
        """Whether there is a discriminator."""
        return hasattr(self, "discriminator")

    def forward(self, model: LatentVariableModel, x: Tensor, bound: Bound, context: Tensor | None) -> Tensor:
        """The decoder's loss in nats, averaged over the batch."""
        if not self.prepared:
            raise VlaeError("the adversarial term has no discriminator yet: call prepare(model) first")
        with torch.no_grad():
            drawn = model.prior(**given(model.check_context(context, len(x)))).sample((processes.total(len(x)),))
            drawn = each(processes.own, drawn)
        made = torch.cat([mean_image(model, z, context) for z in (each(Tensor.detach, bound.z), drawn)])
        self._seen = x, made.detach()
        # With detached weights the model's step leaves no gradient in the discriminator.
        weights = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        losses = F.softplus(-functional_call(self.discriminator, weights, made))
        return processes.whole(losses.view(2, -1).mean(0)).mean()

    def update(self) -> None:
        """The discriminator's step on the images of the model's last one: -log D(real) - log(1 - D(made))."""
        if self._seen is None:
            return
        (real, made), self._seen = self._seen, None
        with torch.enable_grad():
            images = processes.total(len(real))
            loss = F.softplus(-self.discriminator(real)).sum() / images
            loss = loss + F.softplus(self.discriminator(made)).sum() / (2 * images)
        gradients = torch.autograd.grad(loss, list(self.discriminator.parameters()))
        gradients = tuple(map(processes.summed, gradients))
        if all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            for parameter, gradient in zip(self.discriminator.parameters(), gradients, strict=True):
                parameter.grad = gradient
            self._follow()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _follow(self) -> None:
        """Moves the optimiser's averages to where the weights are: a checkpoint is read before these go to a device."""
        for weight, state in self.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    state[name] = value.to(weight)

    def get_extra_state(self) -> dict[str, Any]:
        """The optimiser's state: tensors and plain values."""
        return self.optimizer.state_dict() if self.prepared else {}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Takes it back."""
        if state:
            self.optimizer.load_state_dict(copy.deepcopy(state))  # else both would share the tensors

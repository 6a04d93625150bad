"""What a conditional model is told about each image: a label, or a vector of attributes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlae.errors import VlaeError


class Condition(nn.Module):
    """Embeds the context c of p(x|z, c) and q(z|x, c) as vectors [B, features].

    Labels have a learned vector each. Attributes are standardised by the mean and deviation that `initialise` takes
    from a batch, then go through one layer.

    Args:
        classes: how many labels there are, or 0.
        attributes: how many attributes each image has, or 0; one of the two must be given.
        features: size of the embedding.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, classes: int = 0, attributes: int = 0, features: int = 32):
        super().__init__()
        sizes = (classes, attributes, features)
        if any(not isinstance(n, int) or n < 0 for n in sizes) or (classes > 0) == (attributes > 0) or not features:
            raise VlaeError(
                "a conditional model needs classes (how many labels) or attributes (how many per image), one of the "
                f"two, as positive integers; got classes={classes}, attributes={attributes}"
            )
        self.classes, self.attributes, self.features = classes, attributes, features
        if classes:
            self.embed: nn.Module = nn.Embedding(classes, features)
        else:
            self.embed = nn.Sequential(nn.Linear(attributes, features), nn.ELU())
            self.register_buffer("mean", torch.zeros(attributes))
            self.register_buffer("deviation", torch.ones(attributes))

    @property
    def expected(self) -> str:
        """What a context must be, in words."""
        if self.classes:
            return f"labels, int64 [B] from 0 to {self.classes - 1}"
        return f"{self.attributes} attributes per image, float [B, {self.attributes}]"

    def forward(self, context: Tensor) -> Tensor:
        """Labels int64 [B], or attributes [B, attributes], to embeddings [B, features]."""
        if self.classes:
            return self.embed(context)
        return self.embed((context.to(self.mean.dtype) - self.mean) / self.deviation)

    def check(self, context: Any, count: int) -> Tensor:
        """The context of `count` images, where it is one; else one line that says what was expected.

        A single label or attribute vector stands for all images.
        """
        if context is None:
            raise VlaeError(f"this model is conditional: give context= ({self.expected})")
        device = next(self.parameters()).device
        try:
            context = given = torch.as_tensor(context, device=device)
        except (TypeError, ValueError, RuntimeError):
            raise VlaeError(f"expected as context {self.expected}; got {type(context).__name__}") from None
        if context.ndim == (0 if self.classes else 1):
            context = context.expand(count, *context.shape)
        whole = not context.is_floating_point() and context.dtype != torch.bool
        shape = (count,) if self.classes else (count, self.attributes)
        if tuple(context.shape) != shape or (self.classes and not whole):
            raise VlaeError(f"expected as context {self.expected}; got {given.dtype} {list(given.shape)}")
        if self.classes and count and not 0 <= int(context.min()) <= int(context.max()) < self.classes:
            raise VlaeError(f"expected labels from 0 to {self.classes - 1}; got {_span(context)}")
        if not self.classes and not bool(torch.isfinite(context.to(self.mean.dtype)).all()):
            raise VlaeError("attributes must be finite: the context holds NaN or infinity")
        return context.long() if self.classes else context

    def of(self, labels: Tensor | None, factors: Tensor | None, name: str) -> Tensor:
        """The context that a data set's labels or factors are; `name` is the data set's."""
        given, what = (labels, "labels") if self.classes else (factors, "factors")
        if given is None:
            raise VlaeError(f"this model is conditional on {what}, and {name} has none: choose another data set")
        if self.classes and len(given) and int(given.max()) >= self.classes:
            raise VlaeError(f"{name} has labels up to {int(given.max())}: set classes={int(given.max()) + 1}")
        if self.attributes and given.ndim == 2 and given.shape[1] != self.attributes:
            raise VlaeError(f"{name} has {given.shape[1]} factors per image: set attributes={given.shape[1]}")
        return self.check(given, len(given))

    @torch.no_grad()
    def initialise(self, context: Tensor) -> None:
        """Takes mean and deviation of attributes from a batch [B, attributes]; labels need nothing."""
        if self.attributes:
            values = context.to(self.mean.dtype)
            self.mean.copy_(values.mean(0))
            deviation = values.std(0) if len(values) > 1 else torch.ones_like(self.deviation)
            self.deviation.copy_(torch.where(deviation > 0, deviation, torch.ones_like(deviation)))


def _span(labels: Tensor) -> str:
    low, high = int(labels.min()), int(labels.max())
    return str(low) if low == high else f"{low} to {high}"


class ContextPlane(nn.Module):
    """Puts the context beside an image as one more channel, a learned picture of each context.

    (x [B, C, H, W], embedding [B, features]) -> [B, C + 1, H, W].
    """

    def __init__(self, features: int, height: int, width: int):
        super().__init__()
        self.size = (1, height, width)
        self.linear = nn.Linear(features, height * width)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The image with one more channel, in [0, 1] as the others."""
        plane = F.sigmoid(self.linear(embedding)).unflatten(1, self.size)
        return torch.cat([x, plane.to(x.dtype)], 1)


def given(context: Tensor | None) -> dict[str, Any]:
    """The keyword `context` where there is one: models that take none need not name it."""
    return {} if context is None else {"context": context}

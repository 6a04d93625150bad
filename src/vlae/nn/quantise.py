"""Vector quantisation: the codebook, the estimator of gradients through it, and a PixelCNN that reads maps of codes."""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from vlae.errors import VlaeError, require_positive
from vlae.nn.pixelcnn import ChannelHead, make_trunk
from vlae.nn.receptive import ReceptiveField


def straight_through(chosen: Tensor, features: Tensor) -> Tensor:
    """The chosen vectors, to the last bit; their gradient goes to the features as if nothing had been rounded."""
    return chosen.detach() + (features - features.detach())


def perplexity_of(codes: Tensor, count: int) -> Tensor:
    """exp of the entropy of how often each of `count` codes occurs in int64 codes [...], from 1 to `count`, [].

    Example:
        >>> perplexity_of(torch.tensor([[0, 0], [3, 3]]), 4)
        tensor(2., dtype=torch.float64)
    """
    shares = torch.bincount(codes.flatten(), minlength=count).double() / max(codes.numel(), 1)
    return torch.special.entr(shares).sum().exp()


class Codebook(nn.Module):
    r"""K vectors of D numbers; any vector is rounded to the nearest one (van den Oord et al. 2017, arXiv 1711.00937).

    With `learning="ema"` they are moved by `update` alone (the paper's appendix A.1): each is the mean of the vectors
    that were rounded to it, averaged over batches with the decay gamma. With n_k of them and their sum s_k in a batch,

    .. math:: N_k \leftarrow \gamma N_k + (1 - \gamma) n_k, \quad
        e_k \leftarrow e_k + (1 - \gamma) (s_k - n_k e_k) / N_k,

    which is the paper's m_k / N_k written without m_k: a code that is not used stays where it is. With
    `learning="gradient"` they are parameters, and only `start` and the revival of dead codes move them besides.

    Args:
        codes: K, 2 or more.
        dim: D.
        learning: "ema" or "gradient".
        decay: gamma.
        revival: a code whose N_k is under this share of the average code's is put anew onto one of the batch's vectors;
            0 never does. They are drawn in proportion to the squared distance from their code: where the book is bad.

    Attributes:
        vectors: [K, D].
        usage: N_k, [K]; all 0 before `start`.
    """

    vectors: Tensor
    usage: Tensor

    def __init__(self, codes: int, dim: int, learning: str = "ema", decay: float = 0.99, revival: float = 0.05):
        super().__init__()
        if not isinstance(codes, int) or codes < 2:
            raise VlaeError(f"codes must be 2 or more; got {codes}")
        require_positive("code_dim", dim)
        if learning not in ("ema", "gradient"):
            raise VlaeError(f"codebook must be 'ema' (moving averages) or 'gradient'; got {learning!r}")
        for name, value in (("decay", decay), ("revival", revival)):
            if not 0 <= value < 1:
                raise VlaeError(f"{name} of a codebook must be at least 0 and less than 1; got {value}")
        self.learning, self.decay, self.revival = learning, decay, revival
        vectors = torch.randn(codes, dim)
        if learning == "ema":
            self.register_buffer("vectors", vectors)
        else:
            self.vectors = nn.Parameter(vectors)
        self.register_buffer("usage", torch.zeros(codes))

    still = False  # whether training leaves the codes where they are

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As of any module; without gradients the codes stay where they are, averages and revival too."""
        self.still = not requires_grad
        return super().requires_grad_(requires_grad)

    def extra_repr(self) -> str:
        """For the model's repr."""
        codes, dim = self.vectors.shape
        return f"codes={codes}, dim={dim}, learning={self.learning!r}, decay={self.decay}, revival={self.revival}"

    def forward(self, codes: Tensor) -> Tensor:
        """The vectors of codes, int64 [...] -> [..., D]."""
        return self.vectors[codes]

    @torch.no_grad()
    def nearest(self, features: Tensor) -> Tensor:
        """The codes of vectors [..., D], int64 [...]."""
        with torch.autocast(features.device.type, enabled=False):  # in 16 bits near codes would be mixed up
            vectors = self.vectors.to(features.dtype)
            # Distances don't change with the origin, and far from it their digits would cancel.
            centre = vectors.mean(0)
            vectors = vectors - centre
            return (vectors.square().sum(1) / 2 - (features - centre) @ vectors.t()).argmin(-1)

    @property
    def started(self) -> bool:
        """Whether the codes have been put onto data."""
        return bool(self.usage.any())

    @torch.no_grad()
    def start(self, features: Tensor) -> None:
        """Puts the codes onto vectors drawn from [..., D] as k-means++ does (Arthur and Vassilvitskii 2007).

        Each is drawn in proportion to its squared distance from those drawn before: drawn evenly, most codes would lie
        on the same empty background.
        """
        rows = features.flatten(0, -2).to(self.vectors.dtype)
        first = rows[torch.randint(len(rows), (1,), device=rows.device)]
        chosen, gaps = [first], squared_distance(rows, first)
        for _ in range(1, len(self.vectors)):
            chosen.append(rows[draw(gaps, 1)])
            gaps = torch.minimum(gaps, squared_distance(rows, chosen[-1]))
        self.vectors.copy_(torch.cat(chosen))
        self.usage.fill_(len(rows) / len(self.usage))

    @torch.no_grad()
    def update(self, features: Tensor, codes: Tensor) -> None:
        """After a training batch's vectors [..., D] were rounded to `codes` [...]: the averages, then the revival."""
        if not bool(torch.isfinite(features).all()):
            return  # the training step will be skipped too
        rows, indices = features.flatten(0, -2).to(self.vectors.dtype), codes.flatten()
        with torch.autocast(features.device.type, enabled=False):
            members = nn.functional.one_hot(indices, len(self.vectors)).to(rows.dtype)
            counts, sums = members.sum(0), members.t() @ rows
        self.usage.lerp_(counts, 1 - self.decay)
        if self.learning == "ema":
            moves = (1 - self.decay) * (sums - counts[:, None] * self.vectors)
            self.vectors += moves / self.usage.clamp(min=torch.finfo(rows.dtype).tiny)[:, None]
        dead = self.usage < self.revival * self.usage.mean()
        if bool(dead.any()):
            places = draw(squared_distance(rows, self.vectors[indices]), int(dead.sum()))
            self.vectors[dead] = rows[places]
            self.usage[dead] = self.usage.mean()  # time to find its members


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|^2 of rows, [N, D] and [N, D] or [1, D] -> [N]."""
    return (a - b).square().sum(1)


def draw(weights: Tensor, count: int) -> Tensor:
    """`count` indices of weights [N], 0 or more, in proportion to them: distinct ones as far as there are enough."""
    positive = weights.clamp(min=torch.finfo(weights.dtype).tiny)  # where all are 0, evenly
    return torch.multinomial(positive, count, replacement=count > len(weights))


class CodePixelCNN(nn.Module):
    """A trunk that reads maps of codes: their numbers mean nothing, so each code has an embedding, learned here.

    x [B, 1, h, w] of the levels k / (codes - 1) -> logits [B, 1, codes, h, w].

    Args:
        codes: K.
        stacks: the trunk, one of `vlae.nn.pixelcnn.make_trunk`.
        channels: of the trunk and of the embeddings.
        options: of the trunk: layers, kernel_size, image_height.
    """

    def __init__(self, codes: int, stacks: str, channels: int, **options: Any):
        super().__init__()
        self.codes = codes
        self.trunk = make_trunk(stacks, image_channels=channels, parameters=1, channels=channels, **options)
        self.trunk.head = ChannelHead(channels, channels, image_channels=1, parameters=codes)  # reads no embeddings
        self.embedding = nn.Embedding(codes, channels)

    @property
    def receptive_field(self) -> ReceptiveField:
        """The earlier codes that a code's conditional can see."""
        return cast(ReceptiveField, self.trunk.receptive_field)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: [B, 1, h, w] -> logits [B, 1, codes, h, w]; there is nothing in the context."""
        codes = (x[:, 0] * (self.codes - 1)).round().long()
        return self.trunk(self.embedding(codes).movedim(-1, 1))

"""Image completion: some pixels are given, the model draws the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlae.errors import VlaeError
from vlae.models.base import LatentVariableModel
from vlae.models.context import given
from vlae.models.latents import Latents, each


@dataclass(frozen=True)
class Completion:
    """Completed images and how far to trust them.

    Attributes:
        images: [B, C, H, W] in [0, 1], the given pixels unchanged.
        effective_candidates: of each image, [B], from 1 to the number of candidates: how many had a say. Near 1, more
            candidates would change the result.
        log_evidence: the estimate of log p(given pixels), nats, [B].
    """

    images: Tensor
    effective_candidates: Tensor
    log_evidence: Tensor


@torch.no_grad()
def complete(
    model: LatentVariableModel,
    known: Tensor,
    mask: Tensor,
    candidates: int = 64,
    rounds: int = 2,
    seed: int = 0,
    context: Tensor | None = None,
) -> Completion:
    """Draws the pixels that are not given from p(unknown | known), by importance resampling over candidates for z.

    Each candidate z is decoded with the given pixels kept (`Autoregressive.complete`, `Factorised.complete`) and weighs
    p(z) / r(z) times the probability of the given pixels on its way; one candidate is drawn by weight. The first round
    draws z from the prior, r = p. Each further round draws half of its candidates from the prior and half from the
    posterior of the last round's completion, r being the mixture of the two, so that no weight exceeds twice the
    prior's.

    What is exact: given z, pixels before the unknown ones in the scan, and all pixels of a factorised decoder. What is
    not, but becomes so as the candidates grow in number: z, and given pixels after unknown ones.

    Args:
        model: with a bound: any but the denoising autoencoder, whose codes have no probability to be weighed by.
        known: [B, C, H, W] in [0, 1], values anywhere but on the given pixels are ignored.
        mask: bool, True where a pixel is given; broadcasts to `known`.
        candidates: z's per image and round.
        rounds: 1 or more.
        seed: of all noise.
        context: labels or attributes, of conditional models.

    Raises:
        VlaeError: shapes, a count under 1, values that the likelihood does not have, a model without a bound.
    """
    if candidates < 1 or rounds < 1:
        raise VlaeError(f"candidates and rounds must be 1 or more; got {candidates} and {rounds}")
    if known.ndim != 4 or tuple(known.shape[1:]) != tuple(model.image_shape):
        raise VlaeError(f"expected images [B, {', '.join(map(str, model.image_shape))}]; got {list(known.shape)}")
    try:
        mask.expand(known.shape)
    except RuntimeError:
        raise VlaeError(f"mask must broadcast to the images {list(known.shape)}; got {list(mask.shape)}") from None
    if not model.has_bound:
        raise VlaeError(
            f"completion weighs codes by their probability, and those of a {type(model).__name__} have none"
        )
    context = model.check_context(context, len(known))
    generator = torch.Generator().manual_seed(seed)
    with model.evaluating():
        return _Completer(model, known, mask, candidates, generator, context).run(rounds)


class _Completer:
    def __init__(
        self,
        model: LatentVariableModel,
        known: Tensor,
        mask: Tensor,
        candidates: int,
        generator: torch.Generator,
        context: Tensor | None,
    ):
        self.model, self.count, self.generator = model, candidates, generator
        self.batch = len(known)
        self.told = given(context)
        self.each_told = given(None if context is None else context.repeat_interleave(candidates, 0))
        self.known = known.repeat_interleave(candidates, 0)
        self.mask = mask if mask.ndim < 4 or len(mask) == 1 else mask.repeat_interleave(candidates, 0)

    def run(self, rounds: int) -> Completion:
        proposal: Any = None
        for _ in range(rounds):
            z, log_ratio = self.propose(proposal)
            decoder = self.model.decode(z, **self.each_told)
            images, log_known = decoder.complete(self.known, self.mask, generator=self.generator)
            log_weights = (log_ratio + log_known).view(self.batch, self.count)
            weights = log_weights.softmax(1)
            if weights.isnan().any():
                raise VlaeError("the given pixels have no probability that is a number: the model's weights are broken")
            chosen = torch.multinomial(weights.cpu(), 1, generator=self.generator)[:, 0].to(weights.device)
            best = images.view(self.batch, self.count, *images.shape[1:])[torch.arange(self.batch), chosen]
            proposal = self.model.encode(best, **self.told)
        log_evidence = log_weights.logsumexp(1) - math.log(self.count)
        return Completion(best.clamp(0, 1), 1 / weights.square().sum(1), log_evidence)

    def propose(self, proposal: Any) -> tuple[Latents, Tensor]:
        """z [B * candidates, *latent_shape], of a ladder one of each level, and log p(z) - log r(z)."""
        prior = self.model.prior(**self.told)
        z = prior.sample((self.batch * self.count,), generator=self.generator)
        if proposal is None:
            return z, self.known.new_zeros(len(self.known))
        # The first half of each image's candidates is drawn anew: stratified, so that the mixture's shares are exact.
        half = self.count // 2

        def renew(values: Tensor, drawn: Tensor) -> Tensor:
            values = values.unflatten(0, (self.batch, self.count)).transpose(0, 1).contiguous()
            values[:half] = drawn
            return values

        z = each(renew, z, proposal.sample((half,), self.generator))
        log_prior, log_proposal = prior.log_prob(z), proposal.log_prob(z)
        shares = torch.tensor([half / self.count, 1 - half / self.count], dtype=log_prior.dtype).log()
        log_mixture = torch.logaddexp(log_proposal + shares[0], log_prior + shares[1])
        z = each(lambda values: values.transpose(0, 1).flatten(0, 1), z)
        return z, (log_prior - log_mixture).t().flatten()

"""The importance-weighted bound as a training objective."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlae.distributions.posteriors import DiagonalGaussian
from vlae.errors import VlaeError, require_positive
from vlae.models.base import Bound, LatentVariableModel
from vlae.models.context import given
from vlae.objectives.codes import require_continuous
from vlae.objectives.elbo import Objective
from vlae.processes import whole


class IWAE(Objective):
    r"""Minus the importance-weighted bound of K samples (Burda et al. 2016, arXiv 1509.00519).

    .. math:: -\log \frac1K \sum_k w_k, \quad w_k = p(x|z_k) p(z_k) / q(z_k|x), \quad z_k \sim q(z|x)

    The loss is the bound itself, whose gradient weighs sample k by softmax_k(log w_k); K = 1 is the Monte Carlo ELBO.
    The bound that is reported beside it is the model's ELBO, of one more sample, and so comparable with other
    objectives'; `log_likelihood` evaluates the tighter one.

    Args:
        samples: K, 1 or more; each is decoded, with gradients.
        estimator: of the gradient. "iwae" is that of the bound. "dreg" is doubly reparametrised (Tucker et al. 2019,
            arXiv 1810.04152, equation 8): the same for the generator, and for the encoder the sum over k of softmax_k^2
            dlog w_k/dz_k dz_k/dphi, the same in expectation, but not drowned in its noise as K grows. It needs a
            diagonal Gaussian posterior.
    """

    def __init__(self, samples: int = 8, estimator: str = "iwae"):
        super().__init__()
        require_positive("samples", samples)
        if estimator not in ("iwae", "dreg"):
            raise VlaeError(f"the estimator of IWAE must be 'iwae' or 'dreg'; got {estimator!r}")
        self.samples, self.estimator = samples, estimator

    def check(self, model: LatentVariableModel) -> None:
        """Refuses a model without importance weights of single images, or with weights that say nothing of z."""
        super().check(model)
        if not model.has_bound:
            raise VlaeError(f"a {type(model).__name__} has no density of z, so no importance weights: train it by ELBO")
        if model.likelihood.pools_batch:
            raise VlaeError("IWAE weighs images one by one, and sigma 'optimal' is that of a batch: learn sigma (null)")
        if model.latent_size:  # without any code the weights are p(x) itself
            require_continuous(model, "IWAE")

    def compute(
        self, model: LatentVariableModel, x: Tensor, progress: float, context: Tensor | None = None
    ) -> tuple[Tensor, Bound]:
        """Minus the bound of K samples for images x [B, C, H, W], averaged over the batch; and the ELBO's terms."""
        self.check(model)
        bound = model.elbo(x, context=context).whole()
        if self.estimator == "dreg":
            log_weights = self.doubly_reparametrised(model, x, context)
        else:
            log_weights = torch.cat(list(model.importance_weights(x, self.samples, context=context)))
        loss = math.log(self.samples) - whole(log_weights.logsumexp(0)).mean()
        return loss if bound.penalty is None else loss + bound.penalty.mean(), bound

    def doubly_reparametrised(self, model: LatentVariableModel, x: Tensor, context: Tensor | None) -> Tensor:
        """log w_k [K, B], whose logsumexp has the doubly reparametrised gradient."""
        context = model.check_context(context, len(x))
        q = model.encode(x, **given(context))
        if not isinstance(q, DiagonalGaussian):
            raise VlaeError(f"estimator 'dreg' needs a diagonal Gaussian posterior, not {type(q).__name__}: use 'iwae'")
        z = q.rsample((self.samples,))
        # The encoder learns through z alone: the score term, by way of q's parameters, is what the second factor below
        # stands for.
        fixed = DiagonalGaussian(q.mean.detach(), q.log_stddev.detach())
        repeated = None if context is None else context.repeat(self.samples, *[1] * (context.ndim - 1))
        decoded = model.decode(z.flatten(0, 1), **given(repeated))
        log_p = decoded.log_prob(x.repeat(self.samples, 1, 1, 1)).unflatten(0, (self.samples, len(x)))
        log_weights = log_p + model.prior(**given(context)).log_prob(z) - fixed.log_prob(z)
        shares = log_weights.detach().softmax(0)
        if z.requires_grad:
            # The gradient that comes to z holds one factor softmax_k; this is the other.
            z.register_hook(lambda gradient: gradient * shares.view(*shares.shape, *[1] * (gradient.ndim - 2)))
        return log_weights

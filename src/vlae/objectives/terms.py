"""Terms that training adds to an objective, each with a weight. None of them is part of the bound that is reported."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlae.distributions.likelihoods import Factorised
from vlae.errors import VlaeError, require_numbers
from vlae.models.base import Bound, LatentVariableModel
from vlae.models.context import given
from vlae.models.latents import Latents, each
from vlae.models.saving import trained_on
from vlae.noise import randn
from vlae.objectives.codes import in_rows, require_continuous
from vlae.objectives.elbo import ELBO, Objective
from vlae.objectives.parts import Part
from vlae.objectives.schedules import Schedule, as_weight
from vlae.processes import whole


class Term(Part):
    """A scalar that is added to the loss, times a weight.

    Args:
        weight: a number or a schedule; where it is 0 the term is not computed.
    """

    def __init__(self, weight: float | Schedule = 1.0):
        super().__init__()
        self.weight = as_weight("weight", weight)

    def check(self, model: LatentVariableModel) -> None:
        """As `Objective.check`."""

    def prepare(self, model: LatentVariableModel) -> None:
        """As `Objective.prepare`."""

    def forward(self, model: LatentVariableModel, x: Tensor, bound: Bound, context: Tensor | None) -> Tensor:
        """The term of images x [B, C, H, W] and their bound, with its z, averaged over the batch.

        Where several processes train on rows of one batch, x and z are the own rows, and the term is the whole batch's
        (`vlae.processes.whole`).
        """
        raise NotImplementedError

    def update(self) -> None:
        """Called after each training step that was taken."""


class WithTerms(Objective):
    """Another objective's loss plus weighted terms. The bound beside it is the other objective's, untouched.

    Args:
        terms: one or more.
        objective: any; None takes `ELBO()`.

    Example:
        >>> from vlae import VAE
        >>> objective = WithTerms([LatentNoise(0.1), Contrastive(0.5)])
        >>> model = VAE((1, 8, 8), latent_dim=4, architecture="mlp")
        >>> loss, bound = objective.compute(model, torch.zeros(3, 1, 8, 8), 0.0)
        >>> loss.shape, bound.elbo.shape
        (torch.Size([]), torch.Size([3]))
    """

    def __init__(self, terms: list[Term], objective: Objective | None = None):
        super().__init__()
        terms = list(terms) if isinstance(terms, Iterable) else [terms]
        if not terms:
            raise VlaeError("WithTerms needs one term or more; without any, take the objective itself")
        if strange := [each for each in terms if not isinstance(each, Term)]:
            raise VlaeError(
                f"the terms of WithTerms are LatentNoise, Contrastive, Perceptual and Adversarial; got a "
                f"{type(strange[0]).__name__} (an objective is its other argument, and there is one)"
            )
        if not isinstance(objective, Objective | None):
            raise VlaeError(
                f"the objective of WithTerms must be one such as ELBO, or None; got a {type(objective).__name__}"
            )
        self.objective = ELBO() if objective is None else objective
        self.terms = nn.ModuleList(terms)

    def check(self, model: LatentVariableModel) -> None:
        """The objective's, and the terms'."""
        self.objective.check(model)
        for term in self._terms():
            term.check(model)

    def prepare(self, model: LatentVariableModel) -> None:
        """Prepares the objective and the terms."""
        self.objective.prepare(model)
        for term in self._terms():
            term.prepare(model)

    def compute(
        self, model: LatentVariableModel, x: Tensor, progress: float, context: Tensor | None = None
    ) -> tuple[Tensor, Bound]:
        """The loss of images x [B, C, H, W], terms included, and the bound, which has none of them."""
        loss, bound = self.objective.compute(model, x, progress, context)
        for term in self._terms():
            if weight := term.weight(progress):
                loss = loss + weight * term(model, x, bound, context)
        return loss, bound

    def frozen(self, model: LatentVariableModel, step: int, progress: float) -> list[nn.Parameter]:
        """The objective's."""
        return self.objective.frozen(model, step, progress)

    def floor(self, progress: float) -> float | None:
        """The objective's."""
        return self.objective.floor(progress)

    def update(self, bound: Bound) -> None:
        """Updates the objective and the terms."""
        self.objective.update(bound)
        for term in self._terms():
            term.update()

    def _terms(self) -> Sequence[Term]:
        return [term for term in self.terms if isinstance(term, Term)]


def mean_image(model: LatentVariableModel, z: Latents, context: Tensor | None) -> Tensor:
    """The mean of p(x|z), [B, C, H, W], with gradients; refuses decoders that have none in closed form."""
    decoded = model.decode(z, **given(context))
    if not isinstance(decoded, Factorised) or not decoded.has_mean:
        raise VlaeError(no_mean(model))
    return decoded.mean


def no_mean(model: LatentVariableModel) -> str:
    """The refusal of a term that needs the decoder's mean image."""
    return (
        f"this term needs a decoder with a mean image, and that of this {type(model).__name__} has none "
        "(autoregressive, or channel_means): take a VAE, or leave the term out"
    )


class Perceptual(Term):
    """The squared distance between features of the image and of its reconstruction, summed over all features.

    The reconstruction is the mean of p(x|z) at the bound's sample z; the term moves decoder and encoder (of a VQ-VAE
    the decoder, and a codebook that is learned by gradients), at the cost of one more pass of the decoder. The units
    are the features', no nats.

    Args:
        weight: a number or a schedule.
        network: "classifier", the hidden layer of `vlae.evaluation.classifier.trained_classifier`; or, from Python, any
            module from images [B, C, H, W] in [0, 1] to features [B, ...], or to a list of several. A frozen copy of it
            is kept in eval mode; checkpoints leave it out.
        dataset: whose classifier it is; None takes the data set that is trained on.
    """

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        network: str | nn.Module = "classifier",
        dataset: str | None = None,
    ):
        super().__init__(weight)
        if not isinstance(network, nn.Module) and network != "classifier":
            raise VlaeError(f"network must be 'classifier' or, from Python, a module; got {network!r}")
        if not isinstance(dataset, str | None):
            raise VlaeError(f"dataset must be the name of a data set, or None; got {dataset!r}")
        self.dataset = dataset
        # In a tuple the network is hidden from `parameters`, `state_dict` and `train`: none of them is to touch it.
        self._hidden: tuple[nn.Module, ...] = () if isinstance(network, str) else (frozen_copy(network),)

    def check(self, model: LatentVariableModel) -> None:
        """Refuses autoregressive models."""
        if model.autoregressive:
            raise VlaeError(no_mean(model))

    def prepare(self, model: LatentVariableModel) -> None:
        """Gets the classifier."""
        self.check(model)
        if not self._hidden:
            self._hidden = (self._classifier(model),)

    def _classifier(self, model: LatentVariableModel) -> nn.Module:
        from vlae.data import load
        from vlae.evaluation.classifier import trained_classifier

        own = trained_on(model)
        name = self.dataset or own.get("name")
        if name is None:
            raise VlaeError("this model does not say what it is trained on: give the perceptual term's dataset")
        same = name == own.get("name")
        binarize, root = (own.get("binarize"), own.get("root")) if same else (None, None)
        shape = load(name, "test", root=root).image_shape  # before the classifier is trained
        if tuple(shape) != tuple(model.image_shape):
            raise VlaeError(
                f"the classifier of {name} sees images {list(shape)} and the model makes "
                f"{list(model.image_shape)}: choose another dataset for the perceptual term"
            )
        return frozen_copy(trained_classifier(name, binarize, root=root).body)

    def forward(self, model: LatentVariableModel, x: Tensor, bound: Bound, context: Tensor | None) -> Tensor:
        """The distance, averaged over the batch."""
        if not self._hidden:
            raise VlaeError("the perceptual term has no classifier yet: call prepare(model) first")
        network = self._hidden[0].to(x.device, x.dtype)
        pairs = zip(features(network, x), features(network, mean_image(model, bound.z, context)), strict=True)
        return whole(torch.stack([((a - b) ** 2).flatten(1).sum(1) for a, b in pairs]).sum(0)).mean()


def frozen_copy(network: nn.Module) -> nn.Module:
    """A copy in eval mode without gradients of its own."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def features(network: nn.Module, x: Tensor) -> Sequence[Tensor]:
    """What the network makes of images, as a sequence of tensors [B, ...]."""
    found = network(x)
    return [found] if isinstance(found, Tensor) else list(found)


class Contrastive(Term):
    r"""InfoNCE between two codes of each image, so that codes tell images apart (van den Oord et al. 2018, 1807.03748).

    .. math:: -\frac{1}{2B} \sum_i \left[ \log \frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}}
        + \log \frac{e^{s_{ii}}}{\sum_j e^{s_{ji}}} \right], \quad s_{ij} = \cos(z_i, z'_j) / temperature

    z is the bound's sample of q(z|x) and z' another one, of q(z|x') with its own noise; the other images of the batch
    are the negatives. In nats: log B minus the loss bounds the mutual information of z and z' from below. It moves what
    q(z|x) is made of: the encoder.

    Args:
        weight: a number or a schedule.
        temperature: of the similarities.
        noise: deviation of the Gaussian noise that makes x' of x, cut to [0, 1]; 0 takes x itself.
    """

    def __init__(self, weight: float | Schedule = 1.0, temperature: float = 0.1, noise: float = 0.0):
        super().__init__(weight)
        require_numbers("Contrastive", temperature=temperature, noise=noise)
        if not temperature > 0 or not noise >= 0:
            raise VlaeError(
                f"a contrastive term needs temperature > 0 and noise >= 0; got {temperature} and {noise} in this order"
            )
        self.temperature, self.noise = temperature, noise

    def check(self, model: LatentVariableModel) -> None:
        """Refuses a model without a continuous code that is drawn."""
        if not model.has_bound:
            raise VlaeError(f"a {type(model).__name__} has no q(z|x) to draw a second code from: leave the term out")
        require_continuous(model, "the contrastive term")

    def forward(self, model: LatentVariableModel, x: Tensor, bound: Bound, context: Tensor | None) -> Tensor:
        """The loss in nats, averaged over the batch."""
        self.check(model)
        seen = (x + self.noise * randn((), len(x), x.shape[1:], None, x)).clamp(0, 1) if self.noise else x
        again = model.encode(seen, **given(model.check_context(context, len(x)))).rsample()
        one, other = (whole(F.normalize(in_rows(z), dim=1)) for z in (bound.z, again))
        similarity = one @ other.T / self.temperature
        own = torch.arange(len(one), device=x.device)
        return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2


class LatentNoise(Term):
    """The distortion at a code with Gaussian noise, -log p(x | z + sigma eps), in nats: codes nearby decode alike.

    z is the bound's sample; the term moves decoder and encoder, and costs one more pass of the decoder.

    Args:
        weight: a number or a schedule.
        sigma: deviation of the noise, in units of z.
    """

    def __init__(self, weight: float | Schedule = 1.0, sigma: float = 0.1):
        super().__init__(weight)
        require_numbers("LatentNoise", sigma=sigma)
        if not sigma > 0:
            raise VlaeError(f"sigma of the latent noise must be positive; got {sigma}")
        self.sigma = sigma

    def check(self, model: LatentVariableModel) -> None:
        """Refuses a model without a continuous code."""
        require_continuous(model, "the term of latent noise")

    def forward(self, model: LatentVariableModel, x: Tensor, bound: Bound, context: Tensor | None) -> Tensor:
        """The distortion at the noisy code, averaged over the batch."""
        self.check(model)
        noisy = each(lambda z: z + self.sigma * randn((), len(z), z.shape[1:], None, z), bound.z)
        with model.likelihood.unobserved():
            return -whole(model.decode(noisy, **given(context)).log_prob(x)).mean()

"""More updates for the inference network than for the generator, early in training."""

from __future__ import annotations

from torch import nn

from vlae.errors import VlaeError, require_numbers, require_positive
from vlae.models.base import LatentVariableModel
from vlae.objectives.elbo import ELBO
from vlae.objectives.schedules import Schedule


class LaggingInference(ELBO):
    """`ELBO` with aggressive training of the inference network (He et al. 2019, arXiv 1901.05534).

    Posteriors collapse where the encoder lags behind the model's own posterior p(z|x). So while training is aggressive,
    `inner_steps` training steps move the encoder alone, and the next one the generator (decoder and prior) alone; after
    it, all steps move both. Every step, of either kind, is on a batch of its own. The paper is aggressive until the
    mutual information of held-out images stops climbing; here it is until a share of the training.

    Args:
        inner_steps: updates of the encoder for each of the generator.
        until: aggressive training ends at this progress, above 0 and at most 1.
        beta: as of `ELBO`.
        free_nats: as of `ELBO`.
        per: as of `ELBO`.
    """

    def __init__(
        self,
        inner_steps: int = 10,
        until: float = 0.5,
        beta: float | Schedule = 1.0,
        free_nats: float | Schedule = 0.0,
        per: str = "image",
    ):
        super().__init__(beta, free_nats, per)
        self.needs_rate = True
        require_positive("inner_steps", inner_steps)
        require_numbers("LaggingInference", until=until)
        if not 0 < until <= 1:
            raise VlaeError(f"until must be a share of the training, above 0 and at most 1; got {until}")
        self.inner_steps, self.until = inner_steps, until

    def check(self, model: LatentVariableModel) -> None:
        """Refuses a model without an inference network."""
        super().check(model)
        if not model.inference_parameters():
            raise VlaeError(f"a {type(model).__name__} has no inference network that could lag: train it by ELBO")
        if not any(parameter.requires_grad for parameter in model.inference_parameters()):
            raise VlaeError("the inference network is frozen, so that it can't be trained aggressively: train by ELBO")

    def prepare(self, model: LatentVariableModel) -> None:
        """Checks the model."""
        self.check(model)

    def frozen(self, model: LatentVariableModel, step: int, progress: float) -> list[nn.Parameter]:
        """The generator's parameters in steps of the encoder, the encoder's in those of the generator."""
        if progress >= self.until:
            return []
        inference = model.inference_parameters()
        if step % (self.inner_steps + 1) == self.inner_steps:
            return inference
        moving = set(map(id, inference))
        return [parameter for parameter in model.parameters() if id(parameter) not in moving]

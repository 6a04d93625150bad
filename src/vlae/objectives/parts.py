"""What objectives and their terms have in common."""

from __future__ import annotations

from torch import nn


class Part(nn.Module):
    """A part of the loss, which may have parts of its own, and parameters that are learned beside the model's."""

    def learned(self) -> list[nn.Parameter]:
        """The parameters that the model's optimiser is to train: its own, not those of parts within it."""
        within = [part for part in self.modules() if part is not self and isinstance(part, Part)]
        others = {id(parameter) for part in within for parameter in part.parameters()}
        return [parameter for parameter in self.parameters() if parameter.requires_grad and id(parameter) not in others]

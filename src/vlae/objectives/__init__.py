"""Training objectives and schedules."""

from vlae.objectives.elbo import ELBO, Objective, SoftFreeBits
from vlae.objectives.schedules import Constant, Cyclical, Linear, Schedule

__all__ = ["ELBO", "Constant", "Cyclical", "Linear", "Objective", "Schedule", "SoftFreeBits"]

"""Training objectives, terms that can be added to them, and schedules."""

from vlae.objectives.adversarial import Adversarial
from vlae.objectives.capacity import Capacity
from vlae.objectives.elbo import ELBO, Objective, SoftFreeBits
from vlae.objectives.geco import GECO
from vlae.objectives.iwae import IWAE
from vlae.objectives.lagging import LaggingInference
from vlae.objectives.mmd import InfoVAE, mmd
from vlae.objectives.schedules import Constant, Cyclical, Linear, Schedule
from vlae.objectives.terms import Contrastive, LatentNoise, Perceptual, Term, WithTerms

__all__ = [
    "ELBO",
    "GECO",
    "IWAE",
    "Adversarial",
    "Capacity",
    "Constant",
    "Contrastive",
    "Cyclical",
    "InfoVAE",
    "LaggingInference",
    "LatentNoise",
    "Linear",
    "Objective",
    "Perceptual",
    "Schedule",
    "SoftFreeBits",
    "Term",
    "WithTerms",
    "mmd",
]

"""Evaluation: bounds in nats and bits, and where the rate goes."""

from vlae.evaluation.bounds import Evaluation, LogMeanExp, evaluate, evaluate_nll, importance_nll, keyed_generators
from vlae.evaluation.information import BITS, LatentStatistics, noise_means

__all__ = [
    "BITS",
    "Evaluation",
    "LatentStatistics",
    "LogMeanExp",
    "evaluate",
    "evaluate_nll",
    "importance_nll",
    "keyed_generators",
    "noise_means",
]

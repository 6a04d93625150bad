"""Evaluation: bounds in nats and bits, and where the rate goes."""

from vlae.evaluation.bounds import Evaluation, evaluate
from vlae.evaluation.information import BITS, LatentStatistics, bits_of_groups, noise_means
from vlae.evaluation.kept import KeptLikelihoods
from vlae.evaluation.likelihood import Likelihoods, LogMeanExp, evaluate_nll, importance_nll, likelihoods
from vlae.evaluation.passes import keyed_generators

__all__ = [
    "BITS",
    "Evaluation",
    "KeptLikelihoods",
    "LatentStatistics",
    "Likelihoods",
    "LogMeanExp",
    "bits_of_groups",
    "evaluate",
    "evaluate_nll",
    "importance_nll",
    "keyed_generators",
    "likelihoods",
    "noise_means",
]

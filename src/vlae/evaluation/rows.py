"""Rows of an evaluation's tables, alike on the console and in the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlae.evaluation.information import BITS
from vlae.evaluation.measurements import Measurements
from vlae.evaluation.metrics import METRICS, Metric


def rows_of(found: Measurements, group: str) -> list[Metric]:
    """The metrics of a group that were measured, in their order, as a table of their own has them.

    The rate in bits only where there is none in nats, and what the NLL's table says of every K not once more.
    """
    metrics = [metric for metric in METRICS.values() if metric.group == group and metric.name in found.values]
    elsewhere = {"rate_bits"} if "rate" in found.values else set()
    if "nll_by_samples" in found.series:
        elsewhere |= {"nll", "nll_bits_per_dim", "ess"}
    return [metric for metric in metrics if metric.name not in elsewhere]


def in_bits(metric: Metric, value: float) -> str:
    """A number in nats as it is in bits; nothing where it is not in nats."""
    return metric.written(value * BITS) if metric.unit == "nats" else ""


def nll_cells(row: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """K, the NLL in nats and in bits, bits/dim (nothing for densities) and effective samples."""
    nll, per_dim = METRICS["nll"], row["bits_per_dim"]
    return (
        f"{row['samples']:,}",
        nll.written(row["nll"], row["error"]),
        in_bits(nll, row["nll"]),
        "" if per_dim is None else METRICS["nll_bits_per_dim"].written(per_dim),
        METRICS["ess"].written(row["ess"]),
    )

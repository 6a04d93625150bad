"""The columns of a study's table: the metrics of an evaluation, and what only training and timing know."""

from __future__ import annotations

from vlae.evaluation.metrics import METRICS, Metric

STUDY: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("receptive_field", "receptive field", "pixels", "study", ".0f", "", "earlier pixels that a pixel sees"),
        Metric("epochs", "epochs", "", "study", ".0f", "", "passes over the training images"),
        Metric("training_images", "training images", "", "study", ",.0f", "", "shown in training, repeats counted"),
        Metric("training_seconds", "training", "CPU s", "study", ",.0f", "", "CPU time of the whole vlae train"),
        Metric("sampling_seconds", "sampling", "s/image", "study", ".2g", "lower", "of a batch of 64, least of three"),
    )
}


def column(name: str) -> Metric:
    """What a column is called and how it is written; one that is no metric is a number that the cells give under `x`.

    Example:
        >>> column("rate").heading, column("decoder_layers").heading
        ('rate [nats]', 'decoder layers')
    """
    known = {**METRICS, **STUDY}
    return known.get(name) or Metric(name, name.replace("_", " "), "", "study", "g", "", "")

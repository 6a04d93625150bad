"""Pictures for people: pure functions from tensors to a matplotlib `Figure`, and `save` to write one as PNG.

Nothing here touches pyplot or changes a global setting, so the functions are safe in threads and in servers.
"""

from vlae.figures.charts import rate_per_dimension, receptive_field, training_curves
from vlae.figures.grids import image_grid, recon_grid, save
from vlae.figures.latents import aggregate_posterior, bits_heatmap, latent_scatter
from vlae.figures.sequences import completions, decompressions, interpolations, latent_arithmetic, traversals

__all__ = [
    "aggregate_posterior",
    "bits_heatmap",
    "completions",
    "decompressions",
    "image_grid",
    "interpolations",
    "latent_arithmetic",
    "latent_scatter",
    "rate_per_dimension",
    "receptive_field",
    "recon_grid",
    "save",
    "training_curves",
    "traversals",
]

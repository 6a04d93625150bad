"""Writes tests/codec/golden: small models, .vlae files that they wrote, and the images that these must give for ever.

    python scripts/write_golden.py

Only for a new version of the file format: the tests see to it that the files of the old one stay readable, and a change
of the code that needs new files without a new version is a mistake.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import vlae
from vlae.codec import compress, decompress
from vlae.codec.container import VERSION
from vlae.codec.lossy import Lossy

GOLDEN = Path(__file__).parents[1] / "tests" / "codec" / "golden"
SMALL = {"encoder_widths": (4,), "encoder_hidden": 8, "channels": 6, "context_channels": 3, "flow_order": "same"}
MODELS = {
    "binary": {"image_shape": (1, 8, 7), "latent_dim": 4, "decoder_layers": 2, "flow_steps": 2, "flow_hidden": (8,)},
    "colour": {
        "image_shape": (3, 5, 6),
        "latent_dim": 3,
        "decoder_layers": 1,
        "stacks": "slanted",
        "flow_steps": 0,
        "likelihood": "logistic_mixture",
        "likelihood_options": {"levels": 256, "components": 2},
    },
}


def main() -> int:
    """Writes the files of this version, beside those of former ones; makes models and images that are missing."""
    for number, name in enumerate(MODELS):
        if not (GOLDEN / f"{name}.npz").is_file():
            make(name, number)
        model, levels = vlae.load(GOLDEN / name), np.load(GOLDEN / f"{name}.npz")["images"]
        for mode, step in (("lossless", None), ("lossy", 0.25)):
            data = compress(model, levels, lossy_step=step, images_per_block=5, name=name)
            (GOLDEN / f"{name}-{mode}-{VERSION}.vlae").write_bytes(data)
    print(f"{GOLDEN}: files of version {VERSION}, {sum(p.stat().st_size for p in GOLDEN.rglob('*.*')):,} bytes in all")
    return 0


def make(name: str, seed: int) -> None:
    """A model, images that it drew, and what it makes of them with loss."""
    torch.manual_seed(seed)
    model = vlae.VLAE(**SMALL, **MODELS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # away from uniform probabilities
    model.save_pretrained(GOLDEN / name)
    last = model.likelihood.levels - 1
    images = model.sample(12, generator=torch.Generator().manual_seed(seed))
    levels = (images * last).round().to(torch.uint8).numpy()
    texture = decompress(model, compress(model, levels, lossy_step=0.25), texture="greedy")
    greedy = (texture * last).round().to(torch.uint8).numpy()
    bins = Lossy(model, 0.25).quantise(levels).astype(np.int16)
    np.savez_compressed(GOLDEN / f"{name}.npz", images=levels, bins=bins, greedy=greedy)


if __name__ == "__main__":
    sys.exit(main())

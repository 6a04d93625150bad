"""A run on train+validation has no held-out bound: it keeps the last model and refuses what would watch the bound."""

import pytest
import torch

from vlae import VLAE, VlaeError
from vlae.objectives import ELBO
from vlae.training import run
from vlae.training.checkpoints import read_checkpoint
from vlae.training.settings import DataSettings, TrainerSettings
from vlae.training.task import OptimizerSettings


def train(directory, schedule="cosine", **options):
    torch.manual_seed(0)
    model = VLAE((1, 8, 8), latent_dim=2, decoder_layers=0, channels=2, encoder_widths=(2,), flow_hidden=(4,))
    settings = TrainerSettings(max_epochs=2, precision="32-true", progress_bar=False, **options)
    data = DataSettings("digits", binarize="dynamic", batch_size=500, split="train+validation")
    # Learning far too fast, so that the last model is not the best one.
    optimizer = OptimizerSettings(lr=0.5, schedule=schedule)
    return run.train(model, ELBO(), optimizer, data, settings, directory, config="")


def test_the_last_model_is_kept(tmp_path):
    saved = train(tmp_path / "run")
    best, last = (read_checkpoint(tmp_path / "run" / "ckpts" / f"{name}.ckpt") for name in ("best", "last"))
    assert best["epoch"] == last["epoch"] == 1
    assert (saved / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "name"),
    [({"early_stopping": 3}, "early stopping"), ({"schedule": "plateau"}, "plateau schedule")],
)
def test_what_watches_the_bound_is_refused(tmp_path, options, name):
    with pytest.raises(VlaeError, match=f"{name} needs held-out images"):
        train(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{"devices": 0}, {"num_nodes": 0}, {"strategy": "fsdp"}, {"accelerator": "mps"}])
def test_what_is_not_supported_is_refused(options):
    with pytest.raises(VlaeError, match="trainer"):
        TrainerSettings(**options)

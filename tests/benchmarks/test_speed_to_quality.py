"""`benchmarks/speed_to_quality.py` on the embedded digits."""

import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import speed_to_quality

CONFIG = """
model: {class_path: vlae.VAE, init_args: {latent_dim: 4, architecture: mlp, widths: [16]}}
data: {name: digits, binarize: dynamic, batch_size: 50}
optimizer: {lr: 0.01, warmup_steps: 0}
trainer: {max_epochs: 4, precision: 32-true, accelerator: cpu, devices: 1, progress_bar: false, ema_decay: 0.0}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training of four epochs with a copy of each that was seen; the seconds it took."""
    folder = tmp_path_factory.mktemp("speed")
    (folder / "tiny.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed_to_quality, "POLL", 0.01)
        began = time.time()
        speed_to_quality.train(str(folder / "tiny.yaml"), folder / "outputs" / "tiny", [])
        return folder / "outputs" / "tiny", time.time() - began


def test_epochs_are_kept_with_their_times(run):
    directory, seconds = run
    copies = sorted((directory / "epochs").glob("*.ckpt"))
    assert len(copies) >= 2  # epochs of milliseconds may be missed
    found = [speed_to_quality.quality(c, float((directory / "epochs" / "started").read_text()), 4, 20) for c in copies]
    assert found[-1].epoch == 4 and [q.epoch for q in found] == sorted({q.epoch for q in found})
    assert 0 < found[0].minutes < found[-1].minutes <= seconds / 60
    assert found[-1].nll < found[0].nll and found[-1].nll < found[-1].negative_elbo


def test_the_first_epoch_under_so_many_nats(run, monkeypatch, capsys):
    directory, _ = run
    nll = {}
    for index, copy in enumerate(sorted((directory / "epochs").glob("*.ckpt"))):
        nll[index] = speed_to_quality.quality(copy, 0.0, 4, 20).nll
    for index in nll:
        looked_at, first = speed_to_quality.first_under(nll[index] + 1e-6, directory, 4, 20)
        assert first.nll == pytest.approx(nll[index]) and first in looked_at
    monkeypatch.setattr(
        sys, "argv", f"speed --evaluate-only --run {directory} --nats 1 --samples 4 --images 20".split()
    )
    assert speed_to_quality.main() == 0
    assert "**Not under 1 nats** after" in capsys.readouterr().out


def test_what_can_not_be_done_is_said(tmp_path, monkeypatch, capsys):
    for words, message in (
        (f"--evaluate-only --run {tmp_path}", "has no epochs"),
        ("--samples 0", "must be positive"),
        ("--evaluate-only --nonsense 3", "unknown option --nonsense"),
        (f"--config no-such --run {tmp_path / 'x'}", "the training failed"),
    ):
        monkeypatch.setattr(sys, "argv", ["speed", *words.split()])
        assert speed_to_quality.main() == 2
        assert message in capsys.readouterr().err
    assert not os.listdir(tmp_path)

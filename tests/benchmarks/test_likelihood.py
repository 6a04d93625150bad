import math
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from vlae import VLAE, VlaeError
from vlae.models import base

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import likelihood

SIZES = {"latent_dim": 3, "channels": 4, "context_channels": 2, "encoder_widths": [4], "encoder_hidden": 8}


@pytest.fixture
def model():
    """A small one whose weights are all far from zero."""
    model = VLAE((1, 6, 5), **SIZES, decoder_layers=2, flow_hidden=[8])
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


@pytest.fixture
def images():
    return torch.bernoulli(torch.full((3, 1, 6, 5), 0.4))


def test_all_contenders_give_the_same_nll(model, images):
    worst = likelihood.check_nll(model, images, samples=40)
    assert worst[torch.float64] < 1e-12
    assert worst[torch.float32] < 1e-4


@pytest.mark.parametrize("name", ["vlae_nll", "obvious_network_loop"])
def test_a_difference_is_noticed(model, images, monkeypatch, name):
    function = getattr(likelihood, name)
    monkeypatch.setattr(likelihood, name, lambda *arguments: function(*arguments) + 0.1)
    with pytest.raises(VlaeError, match=r"differs from the obvious loop's by 0\.1 nats"):
        likelihood.check_nll(model, images, samples=3)


def test_the_obvious_loop_is_the_definition(model, images):
    """The mean of the weights of each sample alone."""
    noise = torch.randn(4, 3, 3)
    single = torch.stack([likelihood.obvious_loop(model, images, 1, noise[k : k + 1]) for k in range(4)])
    together = likelihood.obvious_loop(model, images, 4, noise)
    torch.testing.assert_close(together.exp(), single.exp().mean(0))
    assert likelihood.obvious_loop(model, images, 2).shape == (3,)


def test_ingredients_are_left_out_and_put_back(model, images, request):
    seen = []
    evaluate = model.decoder.evaluate

    def note(module, inputs, output):
        if module is model.decoder or module is model.decoder.pixels:
            seen.append(type(module).__name__)

    # Of all modules: a hook of the decoder's own would be one that the shortcuts must not go around.
    request.addfinalizer(register_module_forward_hook(note).remove)

    def calls(**options):
        seen.clear()
        with likelihood.without(**options):
            likelihood.vlae_nll(model, images, 40)
        return set(seen)

    assert calls() == set()
    assert calls(trunk=False) == {"GatedPixelCNN"}
    assert calls(maps=False, trunk=False) == {"GatedPixelCNN"}
    assert calls(by_image=False) == {"AutoregressiveDecoder", "GatedPixelCNN"}
    assert calls() == set() and model.decoder.evaluate == evaluate and base.MANY <= 40


def test_a_run_prints_and_writes(model, monkeypatch, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")

    def missing(settings, split):
        raise VlaeError("not here")

    monkeypatch.setattr(likelihood.DataSettings, "load", missing)
    path = tmp_path / "new" / "table.md"
    arguments = ["--model", str(tmp_path / "model"), "--samples", "33", "--batch", "4", "--images", "2"]
    arguments += ["--seconds", "0.001", "--rounds", "2", "--ablation", "--profile", "--write", str(path)]
    monkeypatch.setattr(sys, "argv", ["likelihood.py", *arguments])
    assert likelihood.main() == 0
    text = path.read_text()
    assert text.strip() in capsys.readouterr().out
    assert "**Ratio" in text and "= vlae" in text and "random images" in text
    assert "convolution forward" in text and "K = 33" in text


def test_bad_numbers_get_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["likelihood.py", "--samples", "0"])
    assert likelihood.main() == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_speeds_and_ratios():
    slow, fast = (likelihood.Contender(name, 2, 3, lambda: None) for name in ("slow", "fast"))
    slow.speeds, fast.speeds = [10.0, 20.0, 40.0], [40.0, 60.0, 120.0]
    slow.faults, fast.faults = [380.0, 400.0, 2.0], [0.1, 0.2, 0.6]
    rows = likelihood.rows_of([slow, fast], samples=60)
    assert rows[1] == ("fast", "60", "3.00 (3.00 to 4.00)", "0", "16.7 min") and rows[0][3] == "380"
    fast.block(0.0)
    assert len(fast.speeds) == 4 and math.isfinite(fast.speeds[-1])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not count them")
def test_page_faults_are_counted():
    page, memory = 4096, []
    touching = likelihood.Contender("touching", 1, 1, lambda: memory.append(bytearray(100 * 2**20)))  # written once
    touching.block(0.0)
    idle = likelihood.Contender("idle", 1, 1, lambda: None)
    idle.block(0.0)
    # Half of 100 MiB at least, in pages of 2 MiB at most.
    assert idle.faults[0] + 25 < touching.faults[0] <= 2 * 100 * 2**20 / page

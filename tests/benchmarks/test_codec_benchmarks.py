import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlae.codec
from vlae import VLAE, VlaeError
from vlae.data import ImageDataset, load
from vlae.evaluation.classifier import Classifier
from vlae.models import PixelCNN

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import codec
import completion
import lossy

SMALL = {"latent_dim": 3, "channels": 4, "context_channels": 2, "encoder_widths": [4], "encoder_hidden": 8}
SHAPE = (1, 8, 8)


def model_of(**options):
    """A model of scikit-learn's digits, binarised unless it has levels, that the codec can code; random weights."""
    settings = {**SMALL, "decoder_layers": 1, "flow_hidden": [8], "flow_order": "same", **options}
    model = VLAE(SHAPE, **settings).eval()
    for p in model.decoder.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.metadata["data"] = {"name": "digits", "binarize": None if "likelihood" in options else "dynamic"}
    return model


def digits(count):
    return load("digits", split="test", binarize="dynamic").subset(count)


GREY = {"likelihood": "categorical", "likelihood_options": {"levels": 17}}


@pytest.mark.parametrize(("options", "protocol"), [({}, "dynamic binarisation"), (GREY, "17 levels")])
def test_every_bit_of_a_file_is_accounted_for(options, protocol):
    model = model_of(**options)
    dataset = codec.held_out(model, 40)
    assert len(dataset) == 40
    assert protocol in dataset.protocol
    sizes = codec.measure(model, dataset.tensor(), images_per_block=20)
    chained = ~sizes.two_parts
    assert sizes.blocks == 2 and 0 < sizes.two_parts.sum() < 20
    # With bits back an image takes its own -ELBO and next to nothing more.
    over = (sizes.added - sizes.own_bound)[chained]
    assert over.max() < 0.5
    assert np.median(np.abs(over)) < 0.2  # less only where z is far out: a table leaves no bin without a chance
    assert np.isnan(sizes.own_bound[sizes.two_parts]).all()
    assert sizes.bound.shape == (4, 40) and np.isfinite(sizes.bound).all()
    assert sizes.added.sum() + sizes.ends == 8 * sizes.payload_bytes
    assert 2 * 32 < sizes.ends < 2 * (32 + 33 + 16)  # checksum, the last word, how many in two parts
    *parts, whole = codec.account_rows(sizes)
    assert sum(float(row[-1]) for row in parts) == pytest.approx(float(whole[-2]), abs=1e-3)
    assert len(codec.size_rows(sizes)) == 3
    assert "0 images over 100 bits" in codec.worst(sizes)


def test_what_is_recorded_is_what_the_coder_holds():
    coder = vlae.codec.ans.NumpyCoder(lanes=2)
    freqs = np.full((2, 40, 4), vlae.codec.ans.TOTAL // 4)
    coder.push(np.ones((2, 40), np.int64), freqs, np.array([True, False]))
    before = codec.held(coder)
    coder.push(np.ones((2, 40), np.int64), freqs, np.array([True, False]))
    assert codec.held(coder)[0] - before[0] == pytest.approx(80, abs=1e-5)
    assert codec.held(coder)[1] == 0
    assert np.array_equal(np.floor(codec.held(coder)), coder.bits())


def test_the_bound_agrees_with_the_model(monkeypatch):
    model, x = model_of().double(), digits(20).tensor()
    found = codec.bound_bits(model, x, samples=2)
    for sample in range(2):
        generator = codec.keyed_generators([13], 0, sample)
        alone = -model.elbo(x[13:14].double(), generator=generator).elbo.item() / math.log(2)
        assert found[sample, 13] == pytest.approx(alone)
    monkeypatch.setattr(codec, "VALUES", 1000)  # few images at a time
    assert np.allclose(codec.bound_bits(model, x, samples=2), found)
    # At one z, the same whoever computes it.
    coder, z = codec.ModelCoder(model), np.full((20, 3), vlae.codec.rounding.BINS // 2)
    zeros = torch.zeros(20, 3, dtype=torch.float64)
    p, q = model.decode(zeros), model.encode(x.double())
    expected = -(p.log_prob(x.double()) + model.prior().log_prob(zeros) - q.log_prob(zeros)) / math.log(2)
    assert torch.allclose(torch.from_numpy(codec.bits_at(coder, codec.to_levels(model, x), z)), expected)


def test_a_wrong_pixel_is_noticed(monkeypatch):
    model, x = model_of(), digits(4).tensor()
    decompress = vlae.codec.decompress

    def wrong(*arguments):
        decoded = decompress(*arguments)
        decoded[-1, 0, 0, 0] = 1 - decoded[-1, 0, 0, 0]
        return decoded

    monkeypatch.setattr(vlae.codec, "decompress", wrong)
    with pytest.raises(VlaeError, match="are not the images"):
        codec.measure(model, x)


@pytest.mark.parametrize(("shape", "levels"), [((1, 7, 5), 2), ((1, 7, 5), 17), ((1, 7, 5), 256), ((3, 7, 5), 256)])
def test_other_compressors_decode_to_the_same(shape, levels):
    images = np.random.default_rng(0).integers(0, levels, (103, *shape), dtype=np.uint8)
    found = dict(codec.baselines(images, levels))
    assert len(found) == 8
    assert all(size > 0 for size in found.values())
    size = math.prod(shape) * 103
    assert found["raw packed bits" if levels == 2 else "raw bytes"] == (math.ceil(size / 8) if levels == 2 else size)
    assert found["PNG, 1 mosaic"] < found["PNG, a file each"]


def test_a_compressor_that_loses_something_is_noticed(monkeypatch):
    monkeypatch.setattr(codec, "as_webp", lambda pixels, levels: codec.as_png(0 * pixels, levels))
    with pytest.raises(VlaeError, match="WebP"):
        codec.baselines(np.ones((2, 1, 3, 3), np.uint8), 2)


def test_mosaics_hold_all_images_within_their_limits():
    images = np.arange(7 * 6, dtype=np.uint8).reshape(7, 1, 2, 3)
    (whole,) = codec.mosaics(images)
    assert whole.shape == (1, 2, 21)
    assert np.array_equal(whole[0, :, 3:6], images[1, 0])
    parts = codec.mosaics(images, largest=6)  # 2 across and 3 down
    assert [part.shape for part in parts] == [(1, 6, 6), (1, 2, 6)]
    assert np.array_equal(parts[0][0, 2:4, 3:6], images[3, 0])
    assert np.array_equal(parts[1][0, :, :3], images[6, 0]) and not parts[1][0, :, 3:].any()
    many = np.zeros((250, 1, 1, 1), np.uint8)
    assert [part.shape for part in codec.mosaics(many)] == [(1, 3, 100)]


def test_published_figures_name_their_data():
    assert codec.published(digits(2))[0] == "binarised MNIST"
    assert not codec.is_same(digits(2), "binarised MNIST")
    grey = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    assert codec.published(ImageDataset(grey))[0].startswith("MNIST, 256")
    assert codec.is_same(ImageDataset(grey, name="mnist"), "MNIST, 256 grey levels")
    assert codec.published(ImageDataset(grey.expand(2, 3, 4, 4).contiguous()))[0].startswith("ImageNet")


def test_the_codec_benchmark_from_end_to_end(tmp_path, monkeypatch, capsys):
    model_of().save_pretrained(tmp_path / "model")
    words = ["--model", tmp_path / "model", "--images", "20", "--write", tmp_path / "new" / "codec.md"]
    monkeypatch.setattr(sys, "argv", ["codec.py", *map(str, words)])
    assert codec.main() == 0
    text = (tmp_path / "new" / "codec.md").read_text()
    assert text.strip() in capsys.readouterr().out
    for expected in ("-ELBO, mean of 4 z", "whole file", "bzip2 -9", "WebP lossless, 1 mosaic", "BB-ANS", "images/s"):
        assert expected in text
    monkeypatch.setattr(sys, "argv", ["codec.py", "--model", "no-such-model"])
    assert codec.main() == 2


def test_lossy_points_and_pictures():
    model, dataset = model_of(), digits(12)
    judge = Classifier(SHAPE, classes=10).eval()
    points, rows = lossy.measure(model, dataset.tensor(), dataset.labels, judge, [0.5, 2.0], shown=4)
    assert [point.step for point in points] == [2, 0.5, 0]
    assert points[0].bits < points[1].bits
    for point in points[:-1]:
        for found in point.quality.values():
            assert 0 < found.error[0] < 1 and 0 <= found.agreement[0] <= 1 and math.isfinite(found.accuracy[1])
        assert point.quality["mean"].error[0] < point.quality["sample"].error[0]  # that is what the mean is for
    assert all(found.error[0] == 0 and found.agreement[0] == 1 for found in points[-1].quality.values())
    assert [row.shape for row in rows.values()] == [(4, *SHAPE)] * 2
    assert len(lossy.rows_of(points)) == 2 * 3 + 1
    assert len(lossy.chart(points, "title").axes) == 2


@pytest.mark.parametrize("benchmark", [lossy, completion])
def test_the_benchmarks_with_a_judge_from_end_to_end(benchmark, tmp_path, monkeypatch):
    model_of().save_pretrained(tmp_path / "model")
    PixelCNN(SHAPE, decoder_layers=1, channels=4).save_pretrained(tmp_path / "baseline")
    judge = Classifier(SHAPE, classes=10).eval()
    judge.test_accuracy = 0.5
    monkeypatch.setattr(benchmark, "trained_classifier", lambda name, binarize: judge)
    words = ["--model", tmp_path / "model", "--images", "6", "--plot", tmp_path / "a.png", "--write", tmp_path / "a.md"]
    more = {lossy: ["--steps", "1"], completion: ["--candidates", "4", "--baseline", tmp_path / "baseline"]}[benchmark]
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, [*words, *more])])
    assert benchmark.main() == 0
    assert "nan" not in (tmp_path / "a.md").read_text()
    for name in {lossy: ["a.png", "a-pictures.png"], completion: ["a.png"]}[benchmark]:
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 100


def test_completions_keep_what_is_given(monkeypatch):
    monkeypatch.setattr(completion, "AT_ONCE", 12)  # three images at a time
    x = digits(8).tensor()
    made, effective = completion.with_latents(model_of(), x, candidates=4)
    alone = completion.without_latents(PixelCNN(SHAPE, decoder_layers=1, channels=4), x)
    for images in (made, alone):
        assert images.shape == x.shape and set(images.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(images[:, :, :4], x[:, :, :4]) and not torch.equal(images, x)
    assert ((effective >= 1 - 1e-5) & (effective <= 4 + 1e-5)).all()
    again, _ = completion.with_latents(model_of(), x, candidates=4, seed=1)
    assert not torch.equal(made, again)


def test_a_baseline_must_be_a_pixelcnn_of_the_same_shape(tmp_path, monkeypatch, capsys):
    model_of().save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--baseline", str(tmp_path / "model")]
    monkeypatch.setattr(sys, "argv", ["completion.py", *words])
    assert completion.main() == 2
    assert "not a PixelCNN" in capsys.readouterr().err

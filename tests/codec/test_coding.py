"""`compress` and `decompress`: whole files in memory and on disk, what they refuse, and files of former versions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlae
from vlae import VlaeError
from vlae.codec import (
    coding,
    compress,
    compress_files,
    decompress,
    decompress_files,
    fingerprint,
    info,
)
from vlae.codec.bitsback import BitsBack
from vlae.codec.container import VERSION, Container
from vlae.codec.lossy import Lossy

SHAPE = (1, 8, 7)
GOLDEN = Path(__file__).parent / "golden"


def loud(model, scale=2.5):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def images_of(model, count, seed=0):
    last = model.likelihood.levels - 1
    values = np.random.default_rng(seed).integers(0, last + 1, (count, *model.image_shape))
    return torch.from_numpy(values / last).to(next(model.parameters()).dtype)


@pytest.fixture
def model(tiny_vae):
    """Fast: factorised, with a flow prior."""
    return loud(tiny_vae(SHAPE, flow_steps=1)).float()


@pytest.fixture
def autoregressive(tiny_vlae):
    return loud(tiny_vlae(SHAPE, flow_order="same"))


# -- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 12])
@pytest.mark.parametrize("images_per_block", [1, 3, 5, 1000])
def test_round_trip(model, count, images_per_block):
    images = images_of(model, count)
    data = compress(model, images, images_per_block=images_per_block)
    assert torch.equal(decompress(model, data), images)
    assert info(data)["blocks"] == min(count, max(1, round(count / images_per_block)))


def test_round_trip_autoregressive(autoregressive):
    images = images_of(autoregressive, 5)
    data = compress(autoregressive, images, images_per_block=2)
    assert torch.equal(decompress(autoregressive, data), images)
    assert compress(autoregressive, images, images_per_block=2, verify=False) == data, "deterministic"


def test_levels_arrays_and_tensors_are_the_same_images(tiny_vae):
    model = tiny_vae(SHAPE, likelihood="categorical", likelihood_options={"levels": 17}).float()
    images = images_of(model, 4)
    levels = (images * 16).round().to(torch.uint8)
    data = compress(model, images)
    for same in (
        images.double(),
        images.numpy(),
        levels,
        levels.numpy(),
        images.double() + 1e-6 * (images.double() < 0.5),
    ):
        assert compress(model, same) == data
    assert torch.equal(decompress(model, data), images)


@pytest.mark.parametrize("levels", [2, 3, 17, 100, 256])
def test_float32_images_come_back_to_the_bit(tiny_vae, levels):
    model = tiny_vae((1, 16, 16), likelihood="categorical", likelihood_options={"levels": levels}).float()
    images = (torch.arange(256) % levels / (levels - 1)).float().view(1, 1, 16, 16)
    assert torch.equal(decompress(model, compress(model, images)), images)


def test_dtype_and_mode_of_the_model_do_not_matter(model):
    images = images_of(model, 4)
    data = compress(model.train(), images)
    assert model.training
    double = vlae.VAE(**model.config).double()
    double.load_state_dict(model.double().state_dict())
    restored = decompress(double.eval(), data)
    assert restored.dtype == torch.float64
    assert torch.equal(restored.float(), images)


def test_images_decode_alone_from_their_own_blocks(model, monkeypatch):
    images = images_of(model, 10)
    data = compress(model, images, images_per_block=3)  # 3 blocks: 4 + 3 + 3
    decode, decoded = BitsBack.decode, []

    def counting(self, contents, sizes, seeds):
        decoded.append(list(sizes))
        return decode(self, contents, sizes, seeds)

    monkeypatch.setattr(BitsBack, "decode", counting)
    expected = [
        (slice(0, 1), [4]),
        (slice(3, 4), [4]),
        (slice(4, 7), [3]),
        (slice(3, 5), [4, 3]),
        (slice(-1, None), [3]),
        (slice(None), [4, 3, 3]),
        (slice(2, 9), [4, 3, 3]),
        (slice(9, 100), [3]),
    ]
    for part, blocks in expected:
        assert torch.equal(decompress(model, data, images=part), images[part])
        assert decoded.pop() == blocks
    for part in (slice(10, 11), slice(3, 3), slice(5, 2), slice(0, 10, 2), slice(None, None, -1)):
        with pytest.raises(VlaeError, match="slice"):
            decompress(model, data, images=part)
    assert not decoded


def test_damage_in_one_block_leaves_the_others(model):
    images = images_of(model, 9)
    container = Container.from_bytes(compress(model, images, images_per_block=3))
    blocks = list(container.blocks)
    blocks[1] = bytes([blocks[1][0] ^ 1]) + blocks[1][1:]
    data = Container(container.header, tuple(blocks)).to_bytes()
    assert torch.equal(decompress(model, data, images=slice(0, 3)), images[:3])
    assert torch.equal(decompress(model, data, images=slice(6, 9)), images[6:])
    for part in (slice(3, 4), slice(0, 4), None):
        with pytest.raises(VlaeError, match="damaged"):
            decompress(model, data, images=part)


def test_workers_share_the_blocks(model):
    images = images_of(model, 5)
    data = compress(model, images, images_per_block=2)
    assert compress(model, images, images_per_block=2, workers=2, verify=False) == data
    with pytest.raises(VlaeError, match="workers"):
        compress(model, images, workers=0)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_images_that_are_none(model):
    good = images_of(model, 3)
    bad = good.clone()
    bad[1, 0, 2, 2] = float("nan")
    middle = good.clone()
    middle[0, 0, 0, 0] = 0.5
    attacks = [
        good[0],
        good[:0],
        good[:, :, :-1],
        good.repeat(1, 3, 1, 1),
        bad,
        middle,
        good - 1,
        good * 255,
        (good * 255).to(torch.uint8),
        good.numpy().astype(np.int64) * 255,
        torch.full_like(good, float("inf")),
    ]
    for images in attacks:
        for options in ({}, {"lossy_step": 0.5}):
            with pytest.raises(VlaeError):
                compress(model, images, **options)


def test_options_that_are_none(model):
    images = images_of(model, 3)
    with pytest.raises(VlaeError, match="not both"):
        compress(model, images, lossy_step=0.5, lossy_bits=10.0)
    with pytest.raises(VlaeError, match="images_per_block"):
        compress(model, images, images_per_block=0)
    with pytest.raises(VlaeError, match="coder"):
        compress(model, images, coder="huffman")
    for step in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(VlaeError, match="step"):
            compress(model, images, lossy_step=step)
    for bits in (0.0, 1e6, -3.0):
        with pytest.raises(VlaeError, match="can't be had"):
            compress(model, images, lossy_bits=bits)


def test_models_that_cannot_be_coded(tiny_vlae, tiny_vae):
    reversed_flow = tiny_vlae(SHAPE)
    with pytest.raises(VlaeError, match="flow_order='same'"):
        compress(reversed_flow, images_of(reversed_flow, 2))
    with pytest.raises(VlaeError, match="flow_order='same'"):
        compress(reversed_flow, images_of(reversed_flow, 2), lossy_step=0.5)
    with pytest.raises(VlaeError, match="density"):
        compress(tiny_vae(SHAPE, likelihood="gaussian"), torch.rand(2, *SHAPE, dtype=torch.float64))


def test_a_name_that_no_reader_accepts_is_not_written(model):
    images = images_of(model, 2)
    for name in ("x" * 5000, "a\nb", "\x1b[2J"):
        try:
            data = compress(model, images, name=name, verify=False)
        except VlaeError:
            continue
        assert torch.equal(decompress(model, data), images)


def test_fingerprint(model, tiny_vae):
    prints = {fingerprint(model)}
    assert len(fingerprint(model)) == 32
    assert fingerprint(model.train()) in prints
    assert fingerprint(model.double()) in prints
    model.float()
    changed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, tensor in changed.items():
        if not tensor.is_floating_point():
            continue
        flat = model.state_dict()[name].view(-1)
        kept = flat[-1].clone()
        flat[-1] = torch.nextafter(kept, kept + 1)
        prints.add(fingerprint(model))
        flat[-1] = kept
    assert len(prints) == 1 + sum(tensor.is_floating_point() for tensor in changed.values())
    other = vlae.VAE(**{**model.config, "beta": 2.0})
    other.load_state_dict(model.state_dict())
    assert fingerprint(other) not in prints


def test_statistics_of_batches(tiny_vae):
    """Batch normalisation: in whatever mode the model is, they are used, not updated, and are part of the model."""
    model = tiny_vae(SHAPE, architecture="conv", widths=[3])
    images = images_of(model, 6)
    data, before = compress(model, images), fingerprint(model)
    assert compress(model.train(), images) == data
    assert torch.equal(decompress(model, data), images)
    assert fingerprint(model) == before
    next(buffer for name, buffer in model.named_buffers() if name.endswith("running_mean"))[0] += 1e-6
    assert fingerprint(model) != before


@pytest.mark.parametrize("options", [{}, {"lossy_step": 0.5}], ids=["lossless", "lossy"])
def test_other_models_are_refused(model, tiny_vae, tiny_vlae, options):
    data = compress(model, images_of(model, 3), name="mine", **options)
    nearly = vlae.VAE(**model.config).float()
    nearly.load_state_dict(model.state_dict())
    assert decompress(nearly, data).shape == (3, *SHAPE)
    with torch.no_grad():
        next(nearly.parameters()).view(-1)[0] += 1e-6
    for other in (nearly, tiny_vae(SHAPE, flow_steps=1), tiny_vlae(SHAPE, flow_order="same"), tiny_vae((1, 4, 4))):
        with pytest.raises(VlaeError, match=r"another model \(it was called 'mine'\)"):
            decompress(other, data)


def test_verify_finds_what_does_not_decode(model, monkeypatch):
    images = images_of(model, 4)
    decode = BitsBack.decode

    def wrong(self, *arguments):
        blocks = decode(self, *arguments)
        blocks[0] = 1 - blocks[0]
        return blocks

    with monkeypatch.context() as patch:
        patch.setattr(BitsBack, "decode", wrong)
        with pytest.raises(VlaeError, match="nothing was kept"):
            compress(model, images)
        compress(model, images, verify=False)
    quantise = Lossy.quantise
    monkeypatch.setattr(Lossy, "decode", lambda self, contents, sizes, seeds: [np.zeros((4, 3), np.int64)])
    with pytest.raises(VlaeError, match="nothing was kept"):
        compress(model, images, lossy_step=0.5)
    assert Lossy.quantise is quantise


def test_verify_reports_a_failed_checksum(model, monkeypatch):
    encode = BitsBack.encode
    monkeypatch.setattr(BitsBack, "encode", lambda self, blocks, seeds: encode(self, blocks, [s ^ 1 for s in seeds]))
    with pytest.raises(VlaeError, match=r"does not decode on this machine.*nothing was kept"):
        compress(model, images_of(model, 4))


def test_a_file_whose_header_does_not_fit_its_model(model):
    """With the right fingerprint and checksums, but the wrong shape or levels: made, not damaged."""
    container = Container.from_bytes(compress(model, images_of(model, 3)))
    for change in ({"levels": 3}, {"shape": (1, 7, 8)}, {"shape": (3, 8, 7)}):
        header = coding.Header(**{**container.header.__dict__, **change})
        with pytest.raises(VlaeError):
            decompress(model, Container(header, container.blocks).to_bytes())


@pytest.mark.parametrize("step", [1e-300, 5e-324, 1e308])
@pytest.mark.filterwarnings("error")
def test_made_up_steps_do_no_harm(model, step):
    container = Container.from_bytes(compress(model, images_of(model, 3), lossy_step=0.5))
    header = coding.Header(**{**container.header.__dict__, "step": step})
    with pytest.raises(VlaeError):
        decompress(model, Container(header, container.blocks).to_bytes())


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Binary pictures of odd sizes, one in colour's clothes, and an array."""
    rng = np.random.default_rng(0)
    path = tmp_path / "in"
    (path / "sub").mkdir(parents=True)
    for name, size in {"a.png": (9, 15), "b.png": (3, 2), "sub/c.png": (8, 7)}.items():
        Image.fromarray(rng.integers(0, 2, size).astype(np.uint8) * 255).save(path / name)
    np.save(path / "d.npy", rng.integers(0, 2, (4, 8, 7)).astype(np.uint8))
    return path


def read(path):
    return np.load(path)["images"] if path.suffix == ".npz" else np.asarray(Image.open(path))


def test_folders_come_back(model, folder, tmp_path):
    header, size = compress_files(model, [folder], tmp_path / "out.vlae", images_per_block=3)
    data = (tmp_path / "out.vlae").read_bytes()
    assert size == len(data)
    assert header.count == 2 * 3 + 1 + 4 + 1
    paths = decompress_files(model, data, tmp_path / "restored")
    assert [path.relative_to(tmp_path / "restored").as_posix() for path in paths] == [
        "a.png",
        "b.png",
        "d.npz",
        "sub/c.png",
    ]
    for name in ("a.png", "b.png", "sub/c.png"):
        assert np.array_equal(read(tmp_path / "restored" / name), read(folder / name))
    assert np.array_equal(read(tmp_path / "restored" / "d.npz")[:, 0], np.load(folder / "d.npy"))


def test_only_some_pictures(model, folder, tmp_path, monkeypatch):
    compress_files(model, [folder], tmp_path / "out.vlae", images_per_block=3)
    data = (tmp_path / "out.vlae").read_bytes()
    decode, lanes = BitsBack.decode, []
    monkeypatch.setattr(BitsBack, "decode", lambda self, c, n, s: (lanes.append(len(c)), decode(self, c, n, s))[1])
    (path,) = decompress_files(model, data, tmp_path / "one", only=["sub/c.png"])
    assert lanes == [1]
    assert np.array_equal(read(path), read(folder / "sub" / "c.png"))
    assert len(list((tmp_path / "one").rglob("*.*"))) == 1
    with pytest.raises(VlaeError, match=r"'nothing\.png'"):
        decompress_files(model, data, tmp_path / "none", only=["a.png", "nothing.png"])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("options", [{}, {"lossy_step": 0.5}], ids=["lossless", "lossy"])
def test_each_block_is_decoded_once(model, folder, tmp_path, monkeypatch, options):
    """Whichever pictures are asked for: a block is shared by several of them, and a picture by several blocks."""
    rng = np.random.default_rng(1)
    for i in range(12):
        Image.fromarray(rng.integers(0, 2, (8, 7)).astype(np.uint8) * 255).save(folder / f"{i:02d}.png")
    header, _ = compress_files(model, [folder], tmp_path / "out.vlae", images_per_block=4, **options)
    data = (tmp_path / "out.vlae").read_bytes()
    texture = {"texture": "greedy"} if options else {}
    whole = decompress_files(model, data, tmp_path / "whole", **texture)
    method, decoded = (Lossy if options else BitsBack), []
    decode = method.decode
    monkeypatch.setattr(method, "decode", lambda self, c, n, s: (decoded.extend(s), decode(self, c, n, s))[1])
    names = [entry.name for entry in header.entries]
    for number, (only, blocks) in enumerate(
        {
            (): header.blocks,
            (*names,): header.blocks,
            ("03.png", "00.png", "03.png", "02.png"): 1,
            ("00.png", "d.npy"): 3,
        }.items()
    ):
        decoded.clear()
        paths = decompress_files(model, data, tmp_path / str(number), only=only, **texture)
        assert len(decoded) == len(set(decoded)) == blocks
        expected = [path for path, name in zip(whole, names, strict=True) if not only or name in only]
        assert [path.name for path in paths] == [path.name for path in expected], "in the file's order"
        assert all(np.array_equal(read(a), read(b)) for a, b in zip(paths, expected, strict=True))


def test_options_of_a_texture_are_refused_without_loss(model, folder, tmp_path):
    compress_files(model, [folder], tmp_path / "out.vlae")
    data = (tmp_path / "out.vlae").read_bytes()
    for options in ({"texture": "sample"}, {"texture": "greedy", "seed": 3}, {"seed": 0}):
        with pytest.raises(VlaeError, match=f"{next(iter(options))} is for lossy files") as error:
            decompress_files(model, data, tmp_path / "x", **options)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


def test_a_place_that_cannot_be_written_to_is_found_before_any_work(model, folder, tmp_path, monkeypatch):
    compress_files(model, [folder], tmp_path / "out.vlae")
    data = (tmp_path / "out.vlae").read_bytes()
    (tmp_path / "dir.vlae").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "b.png").write_text("precious")

    def worked(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr(coding, "_run", worked)
    monkeypatch.setattr(coding.pictures, "read", worked)
    with pytest.raises(VlaeError, match=r"dir\.vlae: a directory, where a file is to be written"):
        compress_files(model, [folder], tmp_path / "dir.vlae")
    with pytest.raises(NotADirectoryError):
        compress_files(model, [folder], tmp_path / "out.vlae" / "new.vlae")
    with pytest.raises(VlaeError, match=r"b\.png exists"):
        decompress_files(model, data, tmp_path / "full")
    with pytest.raises(VlaeError, match="not a directory"):
        decompress_files(model, data, tmp_path / "out.vlae")
    with pytest.raises(VlaeError, match="can't be written to"):
        decompress_files(model, data, tmp_path / "out.vlae" / "below")
    assert not list((tmp_path / "dir.vlae").iterdir())


def test_nothing_is_written_on_failure(model, folder, tmp_path):
    target = tmp_path / "out.vlae"
    target.write_bytes(b"precious")
    Image.fromarray(np.full((8, 7), 100, np.uint8)).save(folder / "grey.png")
    with pytest.raises(VlaeError, match=r"grey\.png"):
        compress_files(model, [folder], target)
    assert target.read_bytes() == b"precious"
    (folder / "grey.png").unlink()
    compress_files(model, [folder], target)
    data = target.read_bytes()
    damaged = data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]
    with pytest.raises(VlaeError, match="damaged"):
        decompress_files(model, damaged, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    decompress_files(model, data, tmp_path / "restored")
    before = (tmp_path / "restored" / "a.png").read_bytes()
    with pytest.raises(VlaeError, match="exists"):
        decompress_files(model, data, tmp_path / "restored")
    decompress_files(model, data, tmp_path / "restored", overwrite=True)
    assert (tmp_path / "restored" / "a.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.vlae", "restored"], "no temporary files"


@pytest.mark.parametrize("texture", ["sample", "greedy", "mean"])
def test_lossy_files(model, folder, tmp_path, texture):
    compress_files(model, [folder], tmp_path / "out.vlae", lossy_step=1.0)
    data = (tmp_path / "out.vlae").read_bytes()
    paths = decompress_files(model, data, tmp_path / "restored", texture=texture, seed=5)
    assert read(paths[0]).shape == (9, 15)
    whole = {path.name: read(path) for path in paths}
    (one,) = decompress_files(model, data, tmp_path / "one", only=["b.png"], texture=texture, seed=5)
    assert np.array_equal(read(one), whole["b.png"])
    if texture != "mean":
        assert set(np.unique(whole["a.png"])) <= {0, 255}


def test_colour_files(tiny_vlae, tmp_path):
    model = loud(tiny_vlae((3, 4, 5), flow_order="same", likelihood="logistic_mixture", decoder_layers=0))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "colour.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "in" / "grey.png")
    compress_files(model, [tmp_path / "in"], tmp_path / "out.vlae")
    decompress_files(model, (tmp_path / "out.vlae").read_bytes(), tmp_path / "restored")
    assert np.array_equal(read(tmp_path / "restored" / "colour.png"), pixels)
    assert np.array_equal(read(tmp_path / "restored" / "grey.png"), pixels[..., 0])


# -- files of former versions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(1, VERSION + 1))
@pytest.mark.parametrize("name", ["binary", "colour"])
def test_golden_files(name, version):
    """Files that a former version wrote: they decode, and are written the same way again (scripts/write_golden.py)."""
    model = vlae.load(GOLDEN / name)
    expected = np.load(GOLDEN / f"{name}.npz")
    files = {mode: (GOLDEN / f"{name}-{mode}-{version}.vlae").read_bytes() for mode in ("lossless", "lossy")}
    levels = expected["images"]
    again = {
        "lossless": compress(model, levels, images_per_block=5, name=name),
        "lossy": compress(model, levels, images_per_block=5, name=name, lossy_step=0.25),
    }
    for mode, data in files.items():
        old, new = Container.from_bytes(data), Container.from_bytes(again[mode])
        assert data[8] == version
        # Not by their bytes: the header is compressed, by whatever version of zlib there is.
        assert new.header == old.header
        assert new.header.text() == old.header.text()
        assert new.blocks == old.blocks
    assert np.array_equal(
        decompress(model, files["lossless"]).numpy(), (levels / (model.likelihood.levels - 1)).astype("f4")
    )
    container = Container.from_bytes(files["lossy"])
    z = Lossy(model, 0.25).decode(container.blocks, container.header.sizes, container.seeds)
    assert np.array_equal(np.concatenate(z), expected["bins"])
    # Drawn from a pseudo-random generator of PyTorch, which promises less than we do: greedy needs none.
    greedy = decompress(model, files["lossy"], texture="greedy").numpy() * (model.likelihood.levels - 1)
    assert np.array_equal(np.rint(greedy), expected["greedy"])


def test_golden_files_are_small():
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 100_000
    for name in ("binary", "colour"):
        assert json.loads((GOLDEN / name / "config.json").read_text())["format"] == 1

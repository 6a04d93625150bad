"""`vlae compress`, `decompress` and `info`: end to end on files, and errors in one line with exit code 2."""

import json
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import vlae
from vlae.cli import main

LEVELS = 17


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model of 8x8 images at the 17 levels of the digits, saved."""
    torch.manual_seed(0)
    options = {"likelihood": "categorical", "likelihood_options": {"levels": LEVELS}}
    tiny = vlae.VAE((1, 8, 8), latent_dim=3, architecture="mlp", widths=[8], **options)
    return str(tiny.save_pretrained(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def reversed_model(tmp_path_factory):
    options = {"latent_dim": 2, "encoder_widths": [2], "encoder_hidden": 4, "channels": 2, "flow_hidden": (4,)}
    tiny = vlae.VLAE((1, 8, 8), decoder_layers=0, flow_order="reversed", **options)
    return str(tiny.save_pretrained(tmp_path_factory.mktemp("models") / "reversed"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a folder of grey pictures of odd sizes at the model's levels."""
    rng = np.random.default_rng(0)
    for name, size in {"one.png": (9, 15), "two.png": (3, 2), "sub/three.png": (8, 8)}.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.round(rng.integers(0, LEVELS, size) * 255 / (LEVELS - 1)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def packed(here, model, capsys):
    assert main(["compress", "in", "out.vlae", "--model", model, "--images_per_block", "3"]) == 0
    capsys.readouterr()
    return here / "out.vlae"


def fails(capsys, *words):
    """The one line that a refused command prints."""
    capsys.readouterr()
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("vlae: error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


def files(directory):
    return sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())


def same(here, name):
    restored = Image.open(here / "back" / name)
    assert restored.mode == "L"
    return np.array_equal(np.asarray(restored), np.asarray(Image.open(here / "in" / name)))


def test_folders_there_and_back(here, model, packed, capsys):
    assert main(["decompress", "out.vlae", "back", "--model", model]) == 0
    assert files(here / "back") == files(here / "in")
    assert all(same(here, name) for name in files(here / "in"))
    assert "3 files in back" in capsys.readouterr().out


def test_compress_says_what_it_did(here, model, capsys):
    assert main(["compress", "in", "out.vlae", "--model", model]) == 0
    out = capsys.readouterr().out
    size = (here / "out.vlae").stat().st_size
    assert "6 images of 1x8x8" in out
    assert f"{size:,} bytes" in out
    assert "decoded again and compared" in out
    assert main(["compress", "in", "out.vlae", "--model", model, "--verify=false"]) == 0
    assert "compared" not in capsys.readouterr().out


def test_raw_is_the_files_own_pixels(here, model, capsys):
    """Without a model each of the 9 * 15 + 3 * 2 + 8 * 8 pixels takes log2(17) bits; what tiles add is not counted."""
    assert main(["compress", "in", "out.vlae", "--model", model]) == 0
    raw = 205 * np.log2(LEVELS) / 8
    assert f"{(here / 'out.vlae').stat().st_size / raw:.1f} times larger than raw" in capsys.readouterr().out
    sure = vlae.load(model)
    with torch.no_grad():  # of black: the decoder's last layer gives every level a map
        list(sure.decoder.parameters())[-1].view(LEVELS, 64)[0] += 9
    sure.save_pretrained("sure")
    Image.fromarray(np.zeros((200, 80), np.uint8)).save("in/one.png")
    assert main(["compress", "in/one.png", "out.vlae", "--model", "sure"]) == 0
    raw = 200 * 80 * np.log2(LEVELS) / 8
    size = (here / "out.vlae").stat().st_size
    assert size < raw
    assert f"{raw / size:.1f} times smaller than raw" in capsys.readouterr().out


def test_what_it_says_to_decompress_with_does(here, model, capsys):
    """For a run whose name has a space in it, too: the last line's command is run as a shell would read it."""
    run = here / "outputs" / "my run"
    shutil.copytree(model, run / "model")
    (run / "config.yaml").write_text("seed: 0")
    for choice in (["--model", "outputs/my run"], ["--run", "outputs/my run"], []):
        assert main(["compress", "in", "out.vlae", *choice]) == 0
        command = shlex.split(capsys.readouterr().out.splitlines()[-1].partition(": ")[2])
        assert command[:2] == ["vlae", "decompress"]
        assert main([*command[1:], "--overwrite"]) == 0
        assert all(
            np.array_equal(*(np.asarray(Image.open(here / d / name)) for d in ("in", "DIRECTORY")))
            for name in files(here / "in")
        )


def test_the_files_name_may_have_a_space_in_it(here, model, capsys):
    assert main(["compress", "in", "my $HOME's.vlae", "--model", model]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].partition(": ")[2])
    assert command == ["vlae", "decompress", "my $HOME's.vlae", "DIRECTORY", "--model", model]


def test_long_names_come_back(here, model):
    names = {"x" * 236 + ".png", "字" * 78 + ".png", "x" * 120 + "y" + "x" * 115 + ".png"}
    for name in names:
        shutil.copy("in/one.png", here / "in" / name)
    assert main(["compress", "in", "out.vlae", "--model", model]) == 0
    assert main(["decompress", "out.vlae", "back", "--model", model]) == 0
    assert names <= set(files(here / "back"))
    assert all(same(here, name) for name in files(here / "in"))


def test_an_output_that_cannot_be_written_is_found_before_any_work(here, model, packed, capsys, monkeypatch):
    def worked(*arguments, **options):
        raise AssertionError

    (here / "dir.vlae").mkdir()
    monkeypatch.setattr("vlae.cli.files.choose_model", worked)
    for inputs in (["in"], ["--data.name", "digits"]):
        assert "dir.vlae: a directory" in fails(capsys, "compress", *inputs, "dir.vlae", "--model", model)
        assert "ot a directory" in fails(capsys, "compress", *inputs, "out.vlae/x.vlae", "--model", model)
    assert files(here / "dir.vlae") == []


def test_a_texture_of_a_lossless_file_is_refused(here, model, packed, capsys):
    for name, value in {"texture": "sample", "seed": "0"}.items():
        error = fails(capsys, "decompress", "out.vlae", "back", "--model", model, f"--{name}", value)
        assert f"{name} is for lossy files" in error
    assert not (here / "back").exists()


def test_a_step_that_is_too_small_says_what_to_do(here, model, capsys):
    error = fails(capsys, "compress", "in", "x.vlae", "--model", model, "--lossy_step", "1e-20")
    assert "take a larger --lossy_step" in error


def test_verify_false_as_documented(here, model):
    assert main(["compress", "in", "out.vlae", "--model", model, "--verify", "false"]) == 0


def test_single_files_and_missing_directories(here, model):
    assert main(["compress", "in/one.png", "in/two.png", "a/b/out.vlae", "--model", model]) == 0
    assert main(["decompress", "a/b/out.vlae", "c/d/back", "--model", model]) == 0
    assert files(here / "c" / "d" / "back") == ["one.png", "two.png"]


def test_only_some(here, model, packed, capsys):
    assert main(["decompress", "out.vlae", "back", "--model", model, "--only", '["sub/three.png"]']) == 0
    assert files(here / "back") == ["sub/three.png"]
    assert same(here, "sub/three.png")
    assert "no picture" in fails(capsys, "decompress", "out.vlae", "x", "--model", model, "--only", '["four.png"]')
    assert not (here / "x").exists()


def test_nothing_is_overwritten_unasked(here, model, packed, capsys):
    (here / "back").mkdir()
    (here / "back" / "two.png").write_bytes(b"precious")
    assert "exists" in fails(capsys, "decompress", "out.vlae", "back", "--model", model)
    assert files(here / "back") == ["two.png"]
    assert (here / "back" / "two.png").read_bytes() == b"precious"
    assert main(["decompress", "out.vlae", "back", "--model", model, "--overwrite"]) == 0
    assert same(here, "two.png")


def test_data_sets(here, model, capsys):
    assert main(["compress", "digits.vlae", "--data.name", "digits", "--model", model]) == 0
    assert "8x8" in capsys.readouterr().out
    assert main(["decompress", "digits.vlae", "back", "--model", model]) == 0
    restored = np.load(here / "back" / "images.npz")["images"]
    expected = vlae.data.load("digits", split="test").tensor()
    assert np.array_equal(restored, (expected * 255).round().numpy().astype(np.uint8))


def test_lossy(here, model, capsys):
    assert main(["compress", "in", "small.vlae", "--model", model, "--lossy_step", "0.5"]) == 0
    assert main(["compress", "in", "bits.vlae", "--model", model, "--lossy_bits", "12"]) == 0
    for texture in ("sample", "greedy", "mean"):
        words = ["decompress", "small.vlae", texture, "--model", model, "--texture", texture, "--seed", "3"]
        assert main(words) == 0
        assert np.asarray(Image.open(here / texture / "one.png")).shape == (9, 15)
    assert "texture" in fails(capsys, "decompress", "small.vlae", "x", "--model", model, "--texture", "median")
    both = ["--lossy_step", "1", "--lossy_bits", "9"]
    assert "not both" in fails(capsys, "compress", "in", "x.vlae", "--model", model, *both)
    assert "can't be had" in fails(capsys, "compress", "in", "x.vlae", "--model", model, "--lossy_bits", "1e9")
    assert "step" in fails(capsys, "compress", "in", "x.vlae", "--model", model, "--lossy_step", "-1")
    assert not (here / "x.vlae").exists()
    assert not (here / "x").exists()
    capsys.readouterr()
    assert main(["info", "small.vlae"]) == 0
    assert "lossy, only z, in bins of 0.5" in capsys.readouterr().out


def test_info_needs_no_model(here, packed, capsys):
    assert main(["info", "out.vlae"]) == 0
    out = capsys.readouterr().out
    for part in ("lossless", "6 of 1x8x8, 17 levels", "3: one.png, sub/three.png, two.png", "2, each"):
        assert part in out
    assert main(["info", "out.vlae", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == packed.stat().st_size
    assert [picture["name"] for picture in found["pictures"]] == ["one.png", "sub/three.png", "two.png"]


def test_what_compress_refuses(here, model, reversed_model, capsys):
    assert ".vlae" in fails(capsys, "compress", "in", "out.zip", "--model", model)
    assert ".vlae" in fails(capsys, "compress", "in", "in/one.png", "--model", model), "the last name is an input"
    assert "no such file" in fails(capsys, "compress", "nowhere", "out.vlae", "--model", model)
    assert "give what to compress" in fails(capsys, "compress", "out.vlae", "--model", model)
    assert "not both" in fails(capsys, "compress", "in", "out.vlae", "--model", model, "--data.name", "digits")
    for option in ("--data.binarize", "--data.limit", "--data.split"):
        assert f"{option} is for a data set" in fails(capsys, "compress", "in", "o.vlae", "--model", model, option, "1")
    assert "flow_order" in fails(
        capsys,
        "compress",
        "--data.name",
        "digits",
        "--data.binarize",
        "threshold",
        "out.vlae",
        "--model",
        reversed_model,
    )
    assert "no saved model" in fails(capsys, "compress", "in", "out.vlae", "--model", "nothing")
    assert "coder" in fails(capsys, "compress", "in", "out.vlae", "--model", model, "--coder", "huffman")
    assert "images_per_block" in fails(
        capsys, "compress", "in", "out.vlae", "--model", model, "--images_per_block", "0"
    )
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save("in/grey.png")
    assert "grey.png" in fails(capsys, "compress", "in", "out.vlae", "--model", model)
    (here / "in" / "grey.png").unlink()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8) + np.arange(3, dtype=np.uint8)).save("in/colour.png")
    assert "colour.png" in fails(capsys, "compress", "in", "out.vlae", "--model", model)
    (here / "in" / "colour.png").unlink()
    (here / "file").write_text("in the way")
    fails(capsys, "compress", "in", "file/out.vlae", "--model", model)
    assert not (here / "out.vlae").exists()
    assert not list(here.rglob("*.tmp"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["half", "single", "double"])
def test_arrays_with_nan_are_refused_and_nothing_is_written(here, model, capsys, kind, bad):
    images = np.zeros((3, 8, 8), kind)
    images[1, 2, 3] = bad
    np.savez("images.npz", images=images)
    np.save("images.npy", images)
    before = files(here)
    for name in ("images.npz", "images.npy"):
        error = fails(capsys, "compress", name, "out.vlae", "--model", model)
        assert name in error
        assert "NaN or infinite" in error
        assert "astype" not in error  # which would make black pixels of them
    assert files(here) == before


def test_a_failure_leaves_the_old_file(here, model, packed, capsys):
    before = packed.read_bytes()
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save("in/grey.png")
    fails(capsys, "compress", "in", "out.vlae", "--model", model)
    assert packed.read_bytes() == before


def test_options_may_stand_between_names(here, model, packed):
    before = packed.read_bytes()
    assert main(["compress", "in", "--model", model, "--verify", "other.vlae", "--images_per_block", "3"]) == 0
    assert (here / "other.vlae").read_bytes() == before


def test_what_decompress_refuses(here, model, reversed_model, packed, capsys):
    data = packed.read_bytes()
    assert "another model" in fails(capsys, "decompress", "out.vlae", "back", "--model", reversed_model)
    for number, damaged in enumerate(
        (data[:-1], data + b"\0", data[:40], data[:-3] + bytes([data[-3] ^ 64]) + data[-2:])
    ):
        (here / f"{number}.vlae").write_bytes(damaged)
        assert "damaged" in fails(capsys, "decompress", f"{number}.vlae", "back", "--model", model)
    (here / "later.vlae").write_bytes(data[:8] + bytes([data[8] + 1]) + data[9:])
    assert "update vlae" in fails(capsys, "decompress", "later.vlae", "back", "--model", model)
    assert "nowhere" in fails(capsys, "decompress", "nowhere.vlae", "back", "--model", model)
    (here / "back").write_text("a file")
    assert "back" in fails(capsys, "decompress", "out.vlae", "back", "--model", model)
    assert (here / "back").read_text() == "a file"


@pytest.mark.parametrize(
    "content", [b"", b"text\n", b"\x89PNG\r\n\x1a\n" + bytes(99), b"\x89VLAE\r\n\x1a\1" + bytes(99)]
)
def test_foreign_files(here, model, content, capsys):
    (here / "foreign.vlae").write_bytes(content)
    fails(capsys, "info", "foreign.vlae")
    fails(capsys, "decompress", "foreign.vlae", "back", "--model", model)
    fails(capsys, "info", "in")
    assert not (here / "back").exists()


def test_as_a_module(here, packed):
    command = [sys.executable, "-m", "vlae", "info"]
    done = subprocess.run([*command, "out.vlae"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "lossless" in done.stdout
    done = subprocess.run([*command, "in/one.png"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vlae: error: ")
    assert done.stderr.count("\n") == 1

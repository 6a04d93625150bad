"""What goes wrong on real machines: one clear line, exit code 2, and nothing lost."""

import errno
import io
import json
import os
import resource
import shutil
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import vlae
from vlae.cli import main
from vlae.cli.output import system_error
from vlae.data.arrays import to_levels
from vlae.files import aside, replacing_directory, set_aside, write_bytes
from vlae.training import checkpoints, run
from vlae.training.checkpoints import WholeCheckpoints, read_checkpoint

TINY = ["--model", "VAE", "--model.latent_dim", "2", "--model.architecture", "mlp", "--model.widths", "[4]"]
TINY += [
    "--data.binarize",
    "dynamic",
    "--data.limit",
    "200",
    "--data.validation_limit",
    "20",
    "--data.batch_size",
    "50",
]
TINY += ["--trainer.progress_bar", "false", "--trainer.precision", "32-true", "--trainer.accelerator", "cpu"]


def train(*words, epochs=1):
    return main(["train", *TINY, "--run.name", "tiny", "--trainer.max_epochs", str(epochs), *words])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def line(capsys):
    """The one line on standard error."""

    def read():
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return read


@contextmanager
def room_for_files_of(size):
    """No file may become larger, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_full_disk_while_training_keeps_the_last_checkpoint_and_the_run_goes_on(here, line):
    assert train(epochs=1) == 0
    ckpts = here / "outputs" / "tiny" / "ckpts"
    before = contents(ckpts)
    with room_for_files_of(8000):  # a checkpoint needs more
        assert train("--resume", epochs=2) == 2
    message = line()
    assert "ckpt; free some space" in message and "--resume" in message
    assert contents(ckpts) == before
    assert train("--resume", epochs=2) == 0
    assert read_checkpoint(ckpts / "last.ckpt")["epoch"] == 1


def test_a_full_disk_in_the_first_epoch_leaves_nothing_behind(here, line):
    with room_for_files_of(8000):
        assert train() == 2
    assert "ckpt; free some space" in line()
    assert not any((here / "outputs").iterdir())


def test_a_checkpoint_that_was_not_written_leaves_no_memory_lent_out(tmp_path):
    """Python 3.12.1 ends in a segmentation fault when it collects a buffer of `io.BytesIO` that is still lent out."""
    with room_for_files_of(100), pytest.raises(OSError, match="too large") as caught:
        WholeCheckpoints().save_checkpoint({"weights": torch.zeros(1000)}, tmp_path / "last.ckpt")
    values = [value for entry in caught.traceback for value in entry.frame.f_locals.values()]
    lent = [value for value in values if isinstance(value, memoryview) and not isinstance(value.obj, bytes)]
    assert values and not lent


def test_half_a_checkpoint_is_never_under_its_name(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    writer = WholeCheckpoints()
    writer.save_checkpoint({"weights": torch.zeros(10)}, path)
    with room_for_files_of(5000), pytest.raises(OSError, match=r"large|room|space") as caught:
        writer.save_checkpoint({"weights": torch.zeros(10_000)}, path)
    assert caught.value.filename == str(path)
    assert len(writer.load_checkpoint(path)["weights"]) == 10
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_while_compressing_keeps_the_old_file(here, line):
    model = vlae.VAE((1, 8, 8), latent_dim=2, architecture="mlp", widths=[4])
    model.save_pretrained("model")
    np.savez("images.npz", images=np.random.default_rng(0).integers(0, 2, (40, 8, 8), dtype=np.uint8))
    (here / "out.vlae").write_bytes(b"old")
    with room_for_files_of(100):
        assert main(["compress", "images.npz", "out.vlae", "--model", "model", "--verify", "false"]) == 2
    assert "out.vlae; free some space" in line()
    assert (here / "out.vlae").read_bytes() == b"old"


# -- commands that write, each with a model, data and an output that is there already --------------------------------

EVAL = ["eval", "model", "--data.name", "digits", "--data.binarize", "threshold", "--data.limit", "150"]
EVAL += ["--only", "bound", "nll", "--nll_samples", "2", "--nll_images", "140", "--output", "reports"]
WRITERS = {
    "train": ["train", *TINY, "--run.name", "tiny", "--trainer.max_epochs", "1"],
    "train --resume": ["train", *TINY, "--run.name", "old", "--trainer.max_epochs", "2", "--resume"],
    "compress": ["compress", "images.npz", "old.vlae", "--model", "model", "--verify", "false"],
    "decompress": ["decompress", "old.vlae", "pictures", "--model", "model", "--overwrite"],
    "eval": EVAL,
    "eval --keep": [*EVAL, "--keep", "nll.csv"],
    "export": ["export", "model", "programs"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory in which every command has been run once."""
    directory = tmp_path_factory.mktemp("made")
    model = vlae.VAE((1, 8, 8), latent_dim=2, architecture="mlp", widths=[4])
    model.save_pretrained(directory / "model")
    images = np.random.default_rng(0).integers(0, 2, (2000, 8, 8), dtype=np.uint8)
    np.savez(directory / "images.npz", images=images)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert main(["train", *TINY, "--run.name", "old", "--trainer.max_epochs", "1"]) == 0
        for name in ("compress", "decompress", "eval --keep", "export"):
            assert main(WRITERS[name]) == 0, name
    return directory


@pytest.fixture
def there(made, tmp_path, monkeypatch):
    """A copy of it."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


@contextmanager
def read_only(monkeypatch, number):
    """Everything that makes or changes a file fails as where one may not write, but on devices such as /dev/null."""

    def refusing(call, writes=lambda *_, **__: True):
        def wrapped(*arguments, **options):
            path = next((each for each in arguments if isinstance(each, str | os.PathLike)), None)
            if path is None or str(path).startswith(("/dev/", "/proc/")) or not writes(*arguments, **options):
                return call(*arguments, **options)
            raise OSError(number, os.strerror(number), str(path))

        return wrapped

    def for_writing(path, mode="r", *_, **__):
        return bool(set(mode) & set("wax+"))

    with monkeypatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
            patch.setattr(os, name, refusing(getattr(os, name)))
        patch.setattr(os, "open", refusing(os.open, lambda path, flags, *_, **__: flags & (os.O_WRONLY | os.O_RDWR)))
        patch.setattr(io, "open", refusing(io.open, for_writing))  # that of pathlib
        patch.setattr("builtins.open", refusing(open, for_writing))
        yield


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("command", WRITERS)
def test_a_place_that_is_read_only(there, line, monkeypatch, command, number):
    before = contents(there)
    with read_only(monkeypatch, number):
        assert main(WRITERS[command]) == 2
    message = line()
    assert os.strerror(number) in message and "choose a" in message
    assert contents(there) == before


# The files that the command writes; there is room for the smaller ones, which stay the old ones then too.
@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("decompress", "pictures/*"),
        ("eval", "reports/*"),
        ("eval --keep", "reports/*"),
        ("export", "programs/*"),
    ],
)
def test_a_full_disk_keeps_what_was_there(there, line, command, written):
    files = list(there.glob(written))
    room = max(path.stat().st_size for path in files) * 9 // 10
    for path in files:
        path.write_text("old")
    before = contents(there)
    with room_for_files_of(room):
        assert main(WRITERS[command]) == 2
    assert "free some space" in line()
    assert contents(there) == before


def test_likelihoods_that_are_kept_survive_a_full_disk(there, line):
    """The disk is full within a line: what is before it counts, the measurement goes on, to the same numbers."""
    kept, report = there / "nll.csv", there / "reports" / "evaluation.json"
    whole, values = kept.read_text().splitlines(), json.loads(report.read_text())["values"]
    kept.unlink()
    report.unlink()
    with room_for_files_of(len("\n".join(whole[:100])) - 5):
        assert main(WRITERS["eval --keep"]) == 2
    assert "nll.csv; free some space" in line()
    assert not report.exists()
    found = kept.read_text().splitlines()
    assert 60 < len(found) < 101 and found[:-1] == whole[: len(found) - 1]
    assert main(WRITERS["eval --keep"]) == 0
    assert json.loads(report.read_text())["values"] == pytest.approx(values, rel=1e-5)
    assert sorted(line.split(",")[0] for line in kept.read_text().splitlines()) == sorted(
        line.split(",")[0] for line in whole
    )


def test_what_the_system_says_of_read_only_places():
    error = PermissionError(13, "Permission denied", "/a")
    assert system_error(error) == "Permission denied: /a; choose a place that can be written to"


def test_data_with_nan():
    for data in (np.full((4, 1, 8, 8), np.nan), torch.full((4, 1, 8, 8), float("inf"))):
        with pytest.raises(vlae.VlaeError, match="NaN"):
            to_levels(data)


@pytest.fixture
def finished(here):
    assert train() == 0
    return here / "outputs" / "tiny"


def test_damaged_checkpoints_and_those_of_other_versions(finished, line):
    last, whole = finished / "ckpts" / "last.ckpt", (finished / "ckpts" / "last.ckpt").read_bytes()
    for damaged in (whole[:-100], whole[: len(whole) // 2], b"", whole[:2000] + bytes(500) + whole[2500:]):
        last.write_bytes(damaged)
        assert train("--resume", epochs=2) == 2
        message = line()
        assert "not a whole checkpoint" in message and "best.ckpt over it" in message
    checkpoint = torch.load(finished / "ckpts" / "best.ckpt", weights_only=True)
    assert checkpoint["vlae"]["format"] == checkpoints.FORMAT
    for change, reason in (
        ({"format": 99, "whatever": 1}, "another version of vlae (format 99"),
        ({"model": "Later"}, "does not build"),
        ({"arguments": {"image_shape": [1, 8, 8], "later": 1}}, "does not build"),
        ({"arguments": None}, "does not build"),
    ):
        torch.save({**checkpoint, "vlae": {**checkpoint["vlae"], **change}}, last)
        assert train("--resume", epochs=2) == 2
        assert reason in line()
    last.write_bytes(whole)
    assert train("--resume", epochs=2) == 0


def test_weights_of_another_model_are_no_model(finished, line):
    best = finished / "ckpts" / "best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    for state in ({}, {"model.x": torch.zeros(3)}, {**checkpoint["state_dict"], "model.more": torch.zeros(1)}):
        torch.save({**checkpoint, "state_dict": state}, best)
        with pytest.raises(vlae.VlaeError, match="not those of its model") as caught:
            run.export(finished)
        assert "\n" not in str(caught.value)


def test_a_configuration_of_another_model(finished, line):
    assert train("--resume", "--model.latent_dim", "3", epochs=2) == 2
    assert "another latent_dim" in line()


def test_a_configuration_of_another_class_of_models(here, line):
    """A ConditionalVAE has the very arguments of a VAE with labels."""
    assert train("--model.classes", "10") == 0
    before = contents(here)
    for words in (["--model", "ConditionalVAE", *TINY[2:8], "--model.classes", "10"], ["--model", "VLAE"]):
        assert main(["train", *words, *TINY[8:], "--run.name", "tiny", "--resume"]) == 2
        assert f"is of a VAE, not of a {words[1]}: resume with the run's own config.yaml" in line()
        assert contents(here) == before


def test_a_run_that_was_killed_while_it_overwrote_another_loses_neither(finished, line):
    """The old run lies aside, its successor has no checkpoint yet."""
    before = contents(finished)
    os.rename(finished, aside(finished))
    (finished / "logs").mkdir(parents=True)
    assert train("--resume") == 2
    assert "move it back" in line()
    assert train() == 2
    assert "exists" in line()
    with room_for_files_of(8000):  # the next attempt fails too: the old run is put back
        assert train("--run.overwrite", "true") == 2
    line()
    assert contents(finished) == before
    assert train("--run.overwrite", "true") == 0
    assert not set_aside(finished)


def test_a_run_that_came_to_nan_says_so_and_gives_way_to_the_next(here, line):
    diverging = ["--optimizer.lr", "1e30", "--trainer.gradient_clip", "0"]
    assert train(*diverging) == 2
    said = line().removeprefix("vlae: error: ")
    log = here / "outputs" / "tiny" / "logs" / "train.log"
    assert "the bound on the validation images is NaN" in said and log.read_text().endswith(f" ERROR {said}\n")
    for words in (["eval"], ["doctor", "--run", "outputs/tiny"], ["sample", "prior", "--model", "outputs/tiny"]):
        assert main(words) == 2
        assert line().endswith(f"outputs/tiny has no finished epoch: {said}")
    assert train("--resume") == 2
    assert "nothing to resume" in line()
    assert main(["viz", "training-curves", "--run", "outputs/tiny"]) == 0
    assert train() == 0
    assert not (here / "outputs" / "tiny" / "grids").exists()
    before = contents(here)
    assert train() == 2
    assert "exists" in line()
    assert train("--run.overwrite", "true", *diverging) == 2
    assert contents(here) == before


def test_the_log_of_a_run_that_went_on_and_came_to_nan_tells_it(finished, line):
    assert train("--resume", "--optimizer.lr", "1e30", "--trainer.gradient_clip", "0", epochs=2) == 2
    said = line().removeprefix("vlae: error: ")
    assert "--resume from the epoch before" in said
    assert (finished / "logs" / "train.log").read_text().endswith(f" ERROR {said}\n")
    assert main(["doctor", "--run", "outputs/tiny", "--images", "20"]) == 0
    [found] = [
        each
        for each in json.loads((finished / "reports" / "doctor.json").read_text())["findings"]
        if each["name"] == "instability"
    ]
    assert found["severity"] == "problem" and "numbers of 1 epoch are not finite" in found["evidence"]
    assert train("--resume", epochs=2) == 0


def test_a_model_that_was_being_replaced_when_the_process_died_is_named(tmp_path):
    path = vlae.VAE((1, 4, 4), latent_dim=2, architecture="mlp").save_pretrained(tmp_path / "model")
    os.rename(path, aside(path))
    with pytest.raises(vlae.VlaeError, match="the old model is") as caught:
        vlae.load(path)
    assert isinstance(vlae.load(str(caught.value).rpartition("is ")[2]), vlae.VAE)


def test_two_failing_renames_lose_nothing(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    write_bytes(tmp_path / "a" / "file", b"old")
    rename, calls = os.rename, []

    def failing(source, target):
        calls.append(source)
        if len(calls) > 1:
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)

    def replace():
        with replacing_directory(tmp_path / "a") as new:
            (new / "file").write_bytes(b"new")

    with pytest.raises(OSError, match="no"):
        replace()
    (kept,) = set_aside(tmp_path / "a")
    assert (kept / "file").read_bytes() == b"old"


def test_output_into_a_pipe_that_nobody_reads(monkeypatch, capsys):
    end, start = os.pipe()
    os.close(end)
    with os.fdopen(start, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        assert main(["--help"]) == 141
        monkeypatch.undo()
    assert capsys.readouterr().err == ""

"""Two processes under torchrun give the numbers of one: gradients, weights, bounds; and end together if one fails."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vlae import processes
from vlae.errors import VlaeError
from vlae.models import VAE
from vlae.training import run
from vlae.training.checkpoints import read_checkpoint
from vlae.training.devices import Layout, check_model, layout

SCRIPT = Path(__file__).with_name("together.py")
spec = importlib.util.spec_from_file_location("together", SCRIPT)
together = importlib.util.module_from_spec(spec)
spec.loader.exec_module(together)

LIMIT = 240  # seconds: it takes some 20, and much more where others use the machine; one that hangs is killed


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes left in a directory, their exit code and what they said."""
    directory = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    source = str(Path(run.__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source, "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        [*command, str(directory)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            together.train(directory / "one")  # meanwhile
            out, err = process.communicate(timeout=LIMIT)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if not (directory / "cut" / "model").is_dir():
        pytest.fail(err[-3000:])
    return directory, process.returncode, out, err


def checkpoint(directory):
    return read_checkpoint(directory / "ckpts" / "last.ckpt")


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max((a[key].double() - b[key].double()).abs().max().item() for key in a if a[key].numel())


@pytest.mark.parametrize("name", together.CASES)
def test_losses_gradients_and_what_adapts_are_those_of_one_process(two, name):
    """Two steps on a batch of 7, three images in one process and four in the other."""
    shared = torch.load(two[0] / "steps.pt", weights_only=True)[name]
    alone = together.steps(name)
    assert any(key.startswith("gradient") and value.abs().max() > 1e-6 for key, value in alone.items())
    assert shared.keys() == alone.keys()
    for key, value in alone.items():
        torch.testing.assert_close(shared[key], value, rtol=1e-9, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")


def test_trained_weights_and_averages_are_those_of_one_process(two):
    whole, one = checkpoint(two[0] / "whole"), checkpoint(two[0] / "one")
    assert whole["global_step"] == one["global_step"] == 6
    for part in ("state_dict", "current_model_state"):
        assert largest_difference(whole[part], one[part]) < 1e-9
    rows = [(two[0] / name / "logs" / "metrics.csv").read_text().splitlines() for name in ("whole", "one")]
    assert len(rows[0]) == len(rows[1]) == 3  # a row for each epoch, by one process only
    for shared, alone in zip(*rows, strict=True):
        for a, b in zip(shared.split(",")[:-1], alone.split(",")[:-1], strict=True):
            assert a == b or float(a) == pytest.approx(float(b), abs=1e-9)


def test_resumed_with_two_processes_is_bit_exact(two):
    whole, cut = checkpoint(two[0] / "whole"), checkpoint(two[0] / "cut")
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(whole[part][key], cut[part][key]) for key in whole[part]), part


def test_resumed_with_another_number_of_processes_is_the_same_training(two):
    together.train(two[0] / "half", resume=True)
    half, one = checkpoint(two[0] / "half"), checkpoint(two[0] / "one")
    assert half["global_step"] == one["global_step"]
    assert largest_difference(half["current_model_state"], one["current_model_state"]) < 1e-9


def test_one_process_writes_the_run(two):
    names = {path.name for path in (two[0] / "whole").iterdir()}
    assert names == {"config.yaml", "ckpts", "logs", "model"}
    assert {path.name for path in (two[0] / "whole" / "ckpts").iterdir()} == {"best.ckpt", "last.ckpt"}
    log = (two[0] / "whole" / "logs" / "train.log").read_text()
    assert log.count("epoch 1/2") == 1 and "2 processes share each batch" in log


def test_bounds_are_those_of_one_process_to_the_last_bit(two):
    assert torch.load(two[0] / "evaluation.pt", weights_only=True) == together.evaluation()


def test_the_command_gives_the_report_of_one_process_and_keeps_the_same_lines(two, tmp_path):
    """To rounding, as the images are decoded beside others; each image has one line, in whatever order."""
    shared = two[0] / "command"
    assert together.command(tmp_path) == 0
    found, alone = (json.loads((path / "reports" / "evaluation.json").read_text()) for path in (shared, tmp_path))
    for name in ("values", "errors"):
        assert found[name] == pytest.approx(alone[name], rel=1e-11), name
    for name in ("images_by_group", "notes"):
        assert found[name] == alone[name], name
    assert "nll" in found["values"] and found["images_by_group"]["nll"] == 200
    lines, other = ((path / "nll.csv").read_text().splitlines() for path in (shared, tmp_path))
    assert lines[:2] == other[:2]
    rows, wanted = (sorted([float(cell) for cell in line.split(",")] for line in each[2:]) for each in (lines, other))
    assert len(rows) == 200 and len({row[0] for row in rows}) == 200
    for row, expected in zip(rows, wanted, strict=True):
        assert row == pytest.approx(expected, rel=1e-11)


def test_a_process_that_fails_ends_all_with_one_line(two):
    directory, code, _, err = two
    assert code != 0
    said = [line for line in err.splitlines() if line.startswith("vlae: error")]
    assert said == ["vlae: error: planted in the second process"]
    assert not (directory / "failed").exists()  # nothing stands in the way of the next try


def launched_by_torchrun(monkeypatch, processes, here):
    for name, value in {"RANK": 0, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": here}.items():
        monkeypatch.setenv(name, str(value))


def test_torchrun_says_how_many_there_are(monkeypatch):
    launched_by_torchrun(monkeypatch, 6, 3)
    assert layout("cpu", 1, 1) == layout("cpu", 3, 2) == Layout("cpu", 3, 2)
    with pytest.raises(VlaeError, match=r"trainer.devices is 3 and the configuration's 2"):
        layout("cpu", 2, 1)


def test_without_torchrun_the_configuration_says_it():
    assert layout("cpu", 2, 3).processes == 6


def test_gpus_that_are_not_there_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(VlaeError, match="2 processes on a machine with 1 GPU:"):
        layout("cuda", 2, 1)


def test_batch_normalisation_on_cpus_is_refused():
    model = VAE((1, 8, 8), latent_dim=2, architecture="conv")
    with pytest.raises(VlaeError, match="batch normalisation"):
        check_model(Layout("cpu", 2, 1), model)
    check_model(Layout("cpu", 1, 1), model)
    check_model(Layout("cuda", 2, 1), model)


def test_commands_of_one_process_are_refused_under_torchrun(monkeypatch, capsys):
    from vlae import cli

    launched_by_torchrun(monkeypatch, 2, 2)
    assert cli.main(["models"]) == 2
    assert "start it without torchrun" in capsys.readouterr().err


def test_bare_srun_tasks_are_refused(monkeypatch, capsys):
    from vlae import cli

    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert cli.main(["eval"]) == 2
    assert "torchrun" in capsys.readouterr().err


def test_who_is_first(monkeypatch):
    assert processes.first()
    monkeypatch.setenv("LOCAL_RANK", "1")  # what Lightning starts
    assert not processes.first()
    monkeypatch.setenv("RANK", "0")
    assert processes.first()

"""Nothing that is loaded can run code: no such call in the source, and a checkpoint that would is refused."""

import ast
import os
from pathlib import Path

import pytest
import torch
import yaml

import vlae
from vlae import VlaeError
from vlae.training.checkpoints import WholeCheckpoints, model_of, read_checkpoint

SOURCE = Path(vlae.__file__).parent
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "_pickle"}


def unsafe(source: str) -> list[str]:
    """The calls and imports of a module that would unpickle, or build what a YAML file names."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").split(".")[0] in FORBIDDEN_MODULES else []
        elif isinstance(node, ast.Call):
            name, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if (
                (name == "torch.load" and options.get("weights_only") != "True")
                or (name.endswith(".load_checkpoint") and options.get("weights_only") != "True")
                or (name in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False")
                or (name.endswith("read_array") and options.get("allow_pickle", "False") != "False")
                or name in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "joblib.load")
                or name in ("eval", "exec", "pd.read_pickle", "torch.hub.load", "torch.jit.load", "os.system")
            ):
                found.append(ast.unparse(node))
    return found


def test_no_module_unpickles():
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 50
    assert {str(file): calls for file in files if (calls := unsafe(file.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "super().load_checkpoint(path)",
        "joblib.load(path)",
    ],
)
def test_the_search_finds_what_it_looks_for(source):
    assert unsafe(source)


class Bomb:
    """A pickle of it makes a directory when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def malicious(tmp_path):
    about = {"model": "VAE", "arguments": {}, "metadata": {}, "bad_steps": 0}
    checkpoint = {"vlae": about, "state_dict": {}, "epoch": 0, "global_step": 0, "more": Bomb(str(tmp_path / "hurt"))}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


@pytest.mark.parametrize("read", [read_checkpoint, model_of])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, read):
    with pytest.raises(VlaeError, match="not a whole checkpoint") as caught:
        read(malicious(tmp_path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hurt").exists()


def test_lightning_itself_reads_weights_only_whatever_it_is_asked(tmp_path):
    for asked in (None, False, True):
        with pytest.raises(Exception, match=r"(?i)weights.only"):
            WholeCheckpoints().load_checkpoint(malicious(tmp_path), weights_only=asked)
    assert not (tmp_path / "hurt").exists()


def test_a_configuration_that_would_run_code_is_refused(tmp_path, capsys):
    from vlae.cli import main

    path = tmp_path / "evil.yaml"
    path.write_text(f"model: !!python/object/apply:os.mkdir ['{tmp_path / 'hurt'}']\n")
    assert main(["train", "--config", str(path), "--run.root", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "hurt").exists()
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(path.read_text())

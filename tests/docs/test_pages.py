"""What the pages tell one to type: every command is taken by its parser, and the tutorial runs from end to end."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import jsonargparse
import pytest

import vlae
from vlae.cli import COMMANDS, main, split_command

ROOT = Path(__file__).parents[2]
PAGES = sorted(str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])

# What stands for a file of the reader's, or one that a run has made.
PLACEHOLDER = re.compile(r"COMMAND|FILE|my\.yaml|outputs/.*\.yaml")

# The budget on which the tutorial runs here: what is added to its commands as they stand on the page.
CHEAPER = {
    "train": ["--trainer.max_epochs", "1", "--trainer.progress_bar", "false"],
    "eval": ["--only", "bound", "nll", "--nll_samples", "1", "5", "--nll_images", "20"],
    "doctor": ["--images", "50"],
    "sample prior": ["--count", "4"],
    "sample complete": ["--count", "2", "--candidates", "4"],
    "viz recon-grid": ["--count", "4"],
    "viz decompressions": ["--count", "2", "--draws", "2"],
    "viz traverse": ["--count", "2"],
    "viz bits": ["--count", "20"],
    "viz latent-scatter": ["--count", "50"],
    "compress": ["--data.limit", "12"],
}


class Parsed(Exception):
    """No error, but the way out of a command."""


@pytest.fixture
def parse(monkeypatch):
    """Parses a command line with its own parser, and goes no further."""
    real = jsonargparse.ArgumentParser.parse_args

    def stop(parser, *args, **kwargs):
        real(parser, *args, **kwargs)
        raise Parsed

    def parsed(words):
        monkeypatch.setattr(jsonargparse.ArgumentParser, "parse_args", stop)
        monkeypatch.chdir(ROOT)
        name, rest = split_command(words)
        with pytest.raises((Parsed, SystemExit)) as stopped:  # the latter after --help, in peace
            COMMANDS[name][0](rest)
        assert stopped.type is Parsed or stopped.value.code == 0

    return parsed


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_taken_by_their_parsers(page, mentioned_on, parse):
    for words in mentioned_on(page):
        if words[0] == "sbatch":
            words = shlex.split(words[-1].replace("$SLURM_ARRAY_TASK_ID", "1"))
        if words[0] in ("torchrun", "srun") and "vlae" in words:
            words = [word for word in words[words.index("vlae") :] if not word.startswith("$")]
        if words[0] == "vlae" and not any(PLACEHOLDER.fullmatch(word) for word in words):
            parse(words[1:])


def test_a_command_that_does_not_exist_is_found(parse):
    with pytest.raises(vlae.VlaeError):
        parse(["train", "--config", "digits", "--no.such_option", "1"])
    with pytest.raises(vlae.VlaeError):
        parse(["viz", "no-such-picture"])


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize("page", PAGES)
def test_bash_takes_the_bash_blocks(page, blocks_of):
    found = blocks_of(page, "bash")
    if page.endswith("devices.md"):
        assert any(block.startswith("#!/bin/bash\n#SBATCH") for block in found)
    for block in found:
        checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, ""), block


def test_the_home_page_leads_to_every_page():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages == set(re.findall(r"\]\(([a-z-]+\.md)\)", text))


def test_every_shipped_configuration_is_in_the_table_of_how_to():
    shipped = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    text = (ROOT / "docs" / "how-to.md").read_text(encoding="utf-8")
    rows = text.partition("| shipped configuration |")[2].partition("\n\n")[0].splitlines()[2:]
    assert sorted(re.findall(r"`([^`]+)`", " ".join(row.split("|")[1] for row in rows))) == shipped


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    asked = re.findall(r"(?:^|`)make ([a-z][a-z-]*)(?=[ `\n])", text, re.MULTILINE)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(asked) <= set(targets)


@pytest.mark.parametrize("page", PAGES)
def test_links_hold_where_the_file_is_read_in_the_repository(page):
    path = ROOT / page
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:|#", target):
            assert (path.parent / target.split("#")[0]).exists(), target


def test_the_tutorial_runs_as_it_is_written(commands_of, blocks_of, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ran = []
    for words in commands_of("docs/tutorial.md"):
        if words[0] != "vlae":
            continue
        name, _ = split_command(words[1:])
        if name == "verify" or needs_mnist(name, words):
            continue  # verify has tests of its own, and MNIST would be fetched
        code = main([*words[1:], *CHEAPER.get(name, [])])
        out, err = capsys.readouterr()
        assert code == 0, f"{shlex.join(words)}: {err}"
        ran.append(name)
        if name not in ("train", "models", "info"):
            for path in re.findall(r"outputs/\S+\.(?:png|html|json|csv)", out):
                assert Path(path).is_file(), path
    assert {"train", "eval", "doctor", "compress", "decompress", "sample complete", "viz traverse"} <= set(ran)
    assert Path("outputs/digits/reports/report.html").is_file()
    assert Path("outputs/digits/samples/prior_samples.png").is_file()
    names = {}
    for block in blocks_of("docs/tutorial.md", "python"):
        exec(block.replace("samples=100", "samples=5").replace("subset(16)", "subset(4)"), names)
    assert names["model"].image_shape == (1, 8, 8)
    assert names["data"].startswith(b"\x89VLAE")


def needs_mnist(name, words):
    """Whether the command looks at images of MNIST, beyond the model."""
    return any(word.startswith("mnist") for word in words) and name not in ("sample prior", "viz receptive-field")


@pytest.mark.skipif("VLAE_DATA" not in os.environ, reason="VLAE_DATA names no directory with MNIST in it")
def test_the_ten_lines_of_the_readme_run(blocks_of, monkeypatch):
    load = vlae.data.load
    monkeypatch.setattr(vlae.data, "load", lambda *args, **options: Small(load(*args, **options)))
    names = {}
    for block in blocks_of("README.md", "python"):
        exec(block.replace("samples=100", "samples=2").replace("sample(16", "sample(2"), names)
    assert names["data"].startswith(b"\x89VLAE")


class Small:
    """A data set of which no more than three images are ever taken."""

    def __init__(self, dataset):
        self.dataset = dataset

    def subset(self, count):
        return self.dataset.subset(min(count, 3))


def test_figures_of_the_pages_are_drawn_by_commands_that_exist(parse):
    """scripts/docs_figures.sh, with a `vlae` that writes down what it is asked."""
    text = (ROOT / "scripts" / "docs_figures.sh").read_text(encoding="utf-8")
    script = re.sub(r"^vlae=.*\n\[ -x .*$", "say() { printf '%s\\\\n' \"$*\"; }\nvlae=say", text, flags=re.MULTILINE)
    script = re.sub(r"^(\[ -d|rm|cd).*$", "", script, flags=re.MULTILINE)
    said = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) > 10
    drawn = []
    for line in said:
        words = shlex.split(line)
        parse(words)
        drawn.append(words[words.index("--output") + 1])
    for picture in drawn:
        assert (ROOT / picture).is_file(), picture
    pages = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("tutorial.md", "explanation.md"))
    for picture in re.findall(r"images/((?:tutorial|explanation)-[a-z-]+\.png)", pages):
        assert f"docs/images/{picture}" in drawn

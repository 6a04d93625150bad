"""The version is in one place, and the files of a release agree."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import vlae

ROOT = Path(__file__).parents[1]
ALWAYS = {"pyproject.toml", ".gitignore"}  # the builder puts them into every sdist
LEFT_OUT = {".pre-commit-config.yaml"}  # hooks of git, which an unpacked sdist is not under


def test_the_version_is_written_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert (ROOT / project["tool"]["hatch"]["version"]["path"]).samefile(ROOT / "src" / "vlae" / "__init__.py")
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+", vlae.__version__)


def test_every_room_is_there_after_the_import():
    code = "import sys, vlae; assert 'lightning' not in sys.modules; vlae.objectives.ELBO; vlae.figures.save"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "evaluation" in dir(vlae) and vlae.evaluation.evaluate is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vlae.nothing


def test_the_changelog_begins_with_this_version_and_goes_back_in_time():
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert versions[0] == vlae.__version__
    numbers = [tuple(map(int, version.split("."))) for version in versions]
    assert numbers == sorted(numbers, reverse=True)


def test_every_python_that_is_promised_has_a_classifier():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"
    for minor in (11, 12, 13):
        assert f"Programming Language :: Python :: 3.{minor}" in project["classifiers"]


def test_ci_tests_every_python_that_is_promised_and_tries_the_release():
    promised = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    (tested,) = (job for job in jobs if "strategy" in job)
    assert tested["strategy"]["matrix"]["python"] == promised
    assert not tested["strategy"]["fail-fast"]
    commands = {step.get("run") for job in jobs for step in job["steps"]}
    assert {"bash .ci/run", "make check-release"} <= commands


def test_every_dependency_is_pinned_to_a_version_within_its_range():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    ranges = {one.name: one for one in map(Requirement, wanted)}
    pins = {one.name: one for one in map(Requirement, (line for line in lines if not line.startswith("#")))}
    assert pins.keys() == ranges.keys()
    for name, pin in pins.items():
        (exact,) = pin.specifier
        assert exact.operator == "==", name
        assert ranges[name].specifier.contains(exact.version), name
        assert pin.extras == ranges[name].extras, name


def test_the_sdist_has_every_file_or_folder_at_the_top_but_a_few():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a checkout of git")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    tracked = {name.split("/")[0] for name in listed.split("\0") if name}
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]
    assert tracked == set(included["include"]) | ALWAYS | LEFT_OUT


def test_the_package_says_that_it_is_typed():
    assert (Path(vlae.__file__).parent / "py.typed").is_file()


def test_the_installed_version_is_this_one():
    try:
        installed = metadata.version("vlae")
    except metadata.PackageNotFoundError:
        pytest.skip("not installed")
    assert installed == vlae.__version__

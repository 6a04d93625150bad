"""The version is in one place, and the files of a release agree."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import vlae

ROOT = Path(__file__).parents[1]


def test_the_version_is_written_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert (ROOT / project["tool"]["hatch"]["version"]["path"]).samefile(ROOT / "src" / "vlae" / "__init__.py")
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+", vlae.__version__)


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


def test_the_package_says_that_it_is_typed():
    assert (Path(vlae.__file__).parent / "py.typed").is_file()


def test_the_installed_version_is_this_one():
    try:
        installed = metadata.version("vlae")
    except metadata.PackageNotFoundError:
        pytest.skip("not installed")
    assert installed == vlae.__version__

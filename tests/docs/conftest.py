import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def blocks(path, language):
    """The code blocks of a page in one language, in order."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(path):
    """The command lines of a page's bash blocks, as lists of words, without comments."""
    lines = [line for block in blocks(path, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def mentioned(path):
    """All of `vlae ...` on a page: in bash blocks, in indented ones, and in code within the text."""
    text = (ROOT / path).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^ +(vlae .*)$", text, re.MULTILINE) + re.findall(r"(?<!`)`(vlae [^`]+)`", text)
    return [*commands(path), *(shlex.split(line, comments=True) for line in lines)]


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def blocks_of():
    return blocks


@pytest.fixture(scope="session")
def commands_of():
    return commands


@pytest.fixture(scope="session")
def mentioned_on():
    return mentioned

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vlae import VlaeError, files
from vlae.files import (
    aside,
    check_place,
    check_target,
    replacing,
    replacing_directory,
    set_aside,
    write_text,
    write_together,
)


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail_halfway():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("failing", range(3))
@pytest.mark.parametrize("step", ["write", "flush"])
def test_files_that_belong_together_are_all_old_or_all_new(tmp_path, monkeypatch, failing, step):
    paths = [tmp_path / name for name in "abc"]
    write_together(dict.fromkeys(paths, b"old"))
    owner, name = (files, "_flush") if step == "flush" else (Path, "write_bytes")
    work, calls = getattr(owner, name), []

    def fails(path, *data):
        calls.append(path)
        if len(calls) == failing + 1:
            raise OSError(28, "No space left on device")
        return work(path, *data)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        with pytest.raises(OSError, match=rf"No space left on device: '.*{'abc'[failing]}'"):
            write_together(dict.fromkeys(paths, b"new"))
    assert [path.read_text() for path in paths] == ["old"] * 3
    assert left(tmp_path) == set("abc")
    write_together(dict.fromkeys(paths, b"new"))
    assert [path.read_text() for path in paths] == ["new"] * 3
    assert left(tmp_path) == set("abc")


def test_a_directory_in_the_place_of_one_file_leaves_all_of_them(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_text("old")
    with pytest.raises(VlaeError, match="a directory, where a file is to be written"):
        write_together({tmp_path / "a": b"new", tmp_path / "b": b"new"})
    assert (tmp_path / "a").read_text() == "old" and left(tmp_path) == {"a", "b"}


def test_no_file_takes_its_place_before_all_are_on_the_disk(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(files, "_flush", lambda path: done.append("flush"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("rename") or replace(*paths))
    write_together(dict.fromkeys([tmp_path / name for name in "abc"], b"new"))
    assert done == ["flush"] * 3 + ["rename"] * 3


@pytest.fixture
def dead():
    """The number of a process that has just ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def begun(directory, process, host=files._HOST):
    """What a process that writes the file "a", or the directory "model", has under way."""
    file, folder = directory / f".a.{host}-{process}.tmp", directory / f".model.new-{host}-{process}-x_1"
    file.write_text("half")
    folder.mkdir()
    (folder / "part").write_text("half")
    return {file.name, folder.name}


def left(directory):
    return {path.name for path in directory.iterdir()}


def write_a(directory):
    write_text(directory / "a", "new")


def write_model(directory):
    with replacing_directory(directory / "model") as new:
        (new / "part").write_text("new")


@pytest.mark.parametrize("write", [write_a, write_model])
def test_what_a_killed_process_left_is_removed_and_what_others_write_is_not(tmp_path, dead, write):
    begun(tmp_path, dead)
    others = begun(tmp_path, os.getppid()) | begun(tmp_path, dead, host="00000000")
    for name in (f".a.{files._HOST}-none.tmp", f".a.{files._HOST}-{10**30}.tmp", f".a.{dead}.tmp", "a.tmp"):
        (tmp_path / name).write_text("of somebody")
        others.add(name)
    write(tmp_path)
    assert left(tmp_path) == others | {"a" if write is write_a else "model"}


def test_the_names_of_what_is_being_written_are_those_that_are_swept(tmp_path):
    with replacing(tmp_path / "a") as temporary:
        assert re.fullmatch(files._UNFINISHED, temporary.name)[1] == str(os.getpid())
        temporary.write_text("")
    with replacing_directory(tmp_path / "model") as new:
        assert re.fullmatch(files._UNFINISHED, new.name)[1] == str(os.getpid())


@pytest.mark.parametrize("name", ["x" * 251 + ".png", "字" * 83 + ".png", "a" + "字" * 83 + ".png", "\U0001f600" * 62])
def test_the_longest_names_can_be_written(tmp_path, dead, name):
    """Whatever is added to a name meanwhile; and what killed processes left of such a name is swept."""
    with replacing(tmp_path / name) as temporary:
        assert re.fullmatch(files._UNFINISHED, temporary.name)[1] == str(os.getpid())
        temporary.write_text("new")
        left_over = temporary.name.replace(f"-{os.getpid()}.", f"-{dead}.")
    assert (tmp_path / name).read_text() == "new"
    (tmp_path / left_over).write_text("half")
    path = tmp_path / "models" / name
    for text in ("old", "new"):
        with replacing_directory(path) as new:
            assert re.fullmatch(files._UNFINISHED, new.name)[1] == str(os.getpid())
            (new / "part").write_text(text)
    assert (path / "part").read_text() == "new"
    old = aside(path)
    os.rename(path, old)
    assert set_aside(path) == [old]
    files._sweep.cache_clear()
    write_a(tmp_path)
    assert left(tmp_path) == {"a", name, "models"}


def test_long_names_that_differ_in_their_middle_are_written_together(tmp_path):
    paths = [tmp_path / ("x" * 120 + middle + "x" * 120) for middle in "ab"]
    write_together({path: path.name.encode() for path in paths})
    assert [path.read_text() for path in paths] == [path.name for path in paths]


def test_names_that_are_almost_too_long_are_kept(tmp_path):
    for length in range(210, 256):
        with replacing(tmp_path / ("x" * length)) as temporary:
            assert len(temporary.name) <= 255
            temporary.write_text("")
    assert len(left(tmp_path)) == 46


def test_ten_thousand_files_do_not_list_their_directory_each(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "listdir", lambda path: calls.append(path) or [])
    for name in "abc":
        write_text(tmp_path / name, "")
    assert len(calls) == 1


def test_a_directory_that_cannot_be_listed_is_written_to(tmp_path, monkeypatch):
    listed = os.listdir

    def refuse(path):
        if path == tmp_path:
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "listdir", refuse)
    write_a(tmp_path)
    write_model(tmp_path)
    assert (tmp_path / "a").read_text() == "new" == (tmp_path / "model" / "part").read_text()


@pytest.mark.parametrize("there", [False, True])
def test_what_was_set_aside_goes_while_there_is_a_whole_one(tmp_path, dead, there):
    """A killed process may have moved the old directory away and not yet the new one to its place; or done both."""
    path = tmp_path / "model"
    mine, run = (aside(path, owner) for owner in (f"{files._HOST}-{dead}-", ""))
    for content in (mine, run, *([path] if there else [])):
        content.mkdir()
    with replacing_directory(path) as new:
        assert set(set_aside(path)) == {mine, run}
        (new / "part").write_text("new")
    assert set_aside(path) == [run]


def test_only_one_copy_is_set_aside_when_a_process_is_killed_between_the_renames(tmp_path, dead, monkeypatch):
    """The newest by its time may be one that a process was removing when it was killed."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "part").write_text("old")
    aside(path, f"{files._HOST}-{dead}-").mkdir()
    rename = os.rename

    def killed(source, target):
        if target == path:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        write_model(tmp_path)
    (kept,) = set_aside(path)
    assert (kept / "part").read_text() == "old"


def test_places_are_checked_and_nothing_is_made(tmp_path, monkeypatch):
    check_place(tmp_path)
    check_place(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(NotADirectoryError) as error:
            check_place(tmp_path / place)
        assert error.value.filename == str(tmp_path / "file")
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != str(tmp_path))
    with pytest.raises(PermissionError):
        check_place(tmp_path / "a" / "b")


def test_a_target_is_checked_and_nothing_is_made(tmp_path):
    check_target(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    check_target(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        check_target(tmp_path / "file" / "a")
    with pytest.raises(VlaeError, match="a directory, where a file is to be written"):
        check_target(tmp_path)
    assert left(tmp_path) == {"file"}


def test_json_text_has_null_where_json_has_no_number():
    text = files.json_text({"a": float("nan"), 1: [math.inf, (1.5, -math.inf)], "b": {"c": "nan", "d": None}})
    assert json.loads(text) == {"a": None, "1": [None, [1.5, None]], "b": {"c": "nan", "d": None}}


@pytest.mark.parametrize("name", ["model", "model[1]", "m*"])
def test_what_was_set_aside_is_found_whatever_its_name(tmp_path, name):
    kept = aside(tmp_path / name)
    kept.mkdir()
    assert set_aside(tmp_path / name) == [kept]

import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vlae.data import load, sources
from vlae.errors import VlaeError

CONTENT = b"the right content"
DIGEST = "md5:" + hashlib.md5(CONTENT).hexdigest()
download = sources._download  # before a fixture takes it away


@pytest.fixture
def online(monkeypatch):
    """A mirror on this machine: its address, and what it serves."""
    pages = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = pages.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(sources, "_download", download)
    yield f"http://127.0.0.1:{server.server_port}", pages
    server.shutdown()
    server.server_close()


def test_root_goes_before_the_environment_and_the_cache(tmp_path, monkeypatch):
    file = sources.File("a", ("set", "other"))
    roots = [tmp_path / name for name in ("root", "env", "cache")]
    for root in roots:
        (root / "other").mkdir(parents=True)
        (root / "other" / "a").touch()
    assert sources.find(file, None) == roots[2] / "other" / "a"
    monkeypatch.setenv("VLAE_DATA", str(roots[1]))
    assert sources.find(file, None) == roots[1] / "other" / "a"
    assert sources.find(file, roots[0]) == roots[0] / "other" / "a"
    (roots[0] / "set").mkdir()
    (roots[0] / "set" / "a").touch()
    assert sources.find(file, str(roots[0])) == roots[0] / "set" / "a"
    assert sources.find(sources.File("b", ("set",)), None) is None


def test_a_root_that_does_not_exist(tmp_path, monkeypatch):
    with pytest.raises(VlaeError, match=r"root=.*nowhere: no such directory"):
        load("mnist", root=tmp_path / "nowhere")
    monkeypatch.setenv("VLAE_DATA", str(tmp_path / "gone"))
    with pytest.raises(VlaeError, match=r"VLAE_DATA=.*gone: no such directory"):
        load("mnist")


def test_a_wrong_checksum(tmp_path):
    path = tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz"
    path.parent.mkdir()
    path.write_bytes(b"something else")
    with pytest.raises(VlaeError, match=r"t10k-images.*md5 .*, expected 9fb629c4.*fetch it again"):
        load("mnist", split="test", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "split", "options", "files", "folder"),
    [
        ("mnist", "train", {}, ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"], "mnist"),
        ("fashion_mnist", "test", {}, ["t10k-images-idx3-ubyte.gz"], "fashion_mnist"),
        ("binarized_mnist", "test", {}, ["binarized_mnist_train.amat"], "mnist_static"),
        ("caltech101_silhouettes", "test", {}, ["caltech101_silhouettes_28_split1.mat"], "caltech101_silhouettes"),
        ("omniglot", "test", {}, ["images_background.zip", "images_evaluation.zip"], "omniglot"),
        ("omniglot", "test", {"variant": "chardata"}, ["chardata.mat"], "omniglot"),
        ("dsprites", "test", {}, ["dsprites_factorial_sh3", "dsprites_ndarray_co1sh3"], "dsprites"),
        ("dsprites", "test", {"variant": "full"}, ["dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"], "dsprites"),
        ("dsprites", "test", {"variant": "random"}, ["dsprites_random20000_64x64.npz"], "dsprites"),
        ("cifar10", "train", {}, ["data_batch_1.bin", "data_batch_5.bin"], "cifar10"),
    ],
)
def test_missing_files_are_named_with_the_places(tmp_path, name, split, options, files, folder):
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(VlaeError) as error:
        load(name, split=split, root=root, **options)
    message = str(error.value)
    assert "\n" not in message
    for part in [*files, str(root / folder), str(tmp_path / "cache" / folder), f"put the files into {root / folder}"]:
        assert part in message
    assert list(root.iterdir()) == []


def test_the_next_mirror_is_tried(tmp_path, online):
    address, pages = online
    pages["/wrong"] = b"an error page"
    pages["/right"] = CONTENT
    mirrors = ("http://127.0.0.1:9/closed", f"{address}/absent", f"{address}/wrong", f"{address}/right")
    file = sources.File("a", ("set",), DIGEST, mirrors)
    (path,) = sources.fetch("set", [file], None)
    assert path == tmp_path / "cache" / "set" / "a"
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["a"]
    pages.clear()
    assert sources.fetch("set", [file], None) == [path]  # from now on without a mirror


def test_no_mirror_is_right(tmp_path, online):
    address, pages = online
    pages["/wrong"] = b"an error page"
    file = sources.File("a", ("set",), DIGEST, (f"{address}/wrong", f"{address}/absent"))
    with pytest.raises(VlaeError, match=r"set: a not found in .*127.0.0.1: ValueError; 127.0.0.1: HTTPError"):
        sources.fetch("set", [file], None)
    assert list((tmp_path / "cache" / "set").iterdir()) == []


def test_members_of_an_archive(tmp_path, online):
    address, pages = online
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in ("../../outside/a", "folder/b"):
            info = tarfile.TarInfo(name)
            info.size = len(CONTENT)
            tar.addfile(info, io.BytesIO(CONTENT))
    pages["/tar"] = packed.getvalue()
    pages["/short"] = packed.getvalue()[:-30]
    files = [sources.File(name, ("set",), DIGEST) for name in ("a", "b")]
    archive = sources.File("all.tar.gz", ("set",), None, (f"{address}/tar",))
    paths = sources.fetch("set", files, None, archive)
    assert [path.read_bytes() for path in paths] == [CONTENT, CONTENT]
    assert sorted(path.name for path in (tmp_path / "cache" / "set").iterdir()) == ["a", "b"]
    assert not (tmp_path / "outside").exists()
    for wanted, url in [("c", "tar"), ("c", "short")]:
        archive = sources.File("all.tar.gz", ("set",), None, (f"{address}/{url}",))
        with pytest.raises(VlaeError, match=r"set: c not found.*all\.tar\.gz"):
            sources.fetch("set", [sources.File(wanted, ("set",))], None, archive)


def test_an_unfinished_file_takes_no_ones_place(tmp_path):
    path = tmp_path / "a" / "b"

    def write(content, fail):
        with sources.replacing(path) as temporary:
            temporary.write_text(content)
            if fail:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write("half", True)
    assert list(path.parent.iterdir()) == []
    write("whole", False)
    with pytest.raises(KeyboardInterrupt):
        write("half", True)
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]

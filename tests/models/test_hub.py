"""The Hub's verbs against a server on this machine that speaks as much of its protocol as a saved model needs."""

import base64
import hashlib
import importlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import vlae
from vlae import VlaeError
from vlae.models import hub
from vlae.models.saving import locate

pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "org/name"


class StandIn(BaseHTTPRequestHandler):
    """One repository: its files by name, in `server.files`; every request is kept in `server.asked`."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.asked.append(self.path)
        repository, _, rest = self.path.strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repository != REPOSITORY or not rest:
            return self.answer(404, error="RepoNotFound")
        if revision not in ("main", COMMIT):
            return self.answer(404, error="RevisionNotFound")
        if name not in self.server.files:
            return self.answer(404, error="EntryNotFound")
        data = self.server.files[name]
        return self.answer(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def do_POST(self):
        self.server.asked.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address = f"http://127.0.0.1:{self.server.server_port}/{REPOSITORY}"
        if not self.server.writable:
            return self.answer(403)
        if self.path.endswith("/repos/create"):
            return self.answer(200, {"url": address, "id": REPOSITORY})
        if self.path.endswith("/validate-yaml"):
            return self.answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            kinds = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self.answer(200, {"files": kinds})
        lines = [json.loads(line) for line in body.splitlines()]
        for file in (line["value"] for line in lines if line["key"] == "file"):
            self.server.files[file["path"]] = base64.b64decode(file["content"])
        return self.answer(200, {"commitUrl": f"{address}/commit/{COMMIT}", "commitOid": COMMIT})

    def answer(self, status, body=b"", headers=None, error=None):
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(status)
        for key, value in {**(headers or {}), **({"X-Error-Code": error} if error else {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json" if isinstance(body, dict) else "application/octet-stream")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An empty repository org/name, which the client takes for the Hub."""
    standin = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    standin.files, standin.asked, standin.writable = {}, [], True
    threading.Thread(target=standin.serve_forever, args=[0.01], daemon=True).start()
    address = f"http://127.0.0.1:{standin.server_port}"
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}", raising=False
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield standin
    standin.shutdown()
    standin.server_close()


def refusal(call):
    with pytest.raises(VlaeError) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def published(server, model):
    return model.push_to_hub(REPOSITORY, token="hf_" + "x" * 34)


def test_a_model_comes_back_as_it_was_pushed(server, tiny_vae):
    model = tiny_vae()
    model.metadata = {"data": {"name": "digits"}}
    address = published(server, model)
    assert COMMIT in address
    assert set(server.files) == {"config.json", "model.safetensors", "README.md"}
    for again in (vlae.load("hf:org/name"), vlae.VAE.from_pretrained("org/name"), vlae.load(f"hf:org/name@{COMMIT}")):
        assert type(again) is vlae.VAE and not again.training
        assert again.metadata == model.metadata
        for name, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor)
    assert "holds a VAE, not a VLAE" in refusal(lambda: vlae.VLAE.from_pretrained("org/name"))


def test_options_of_the_client_are_passed_on(server, tiny_vae, tmp_path):
    published(server, tiny_vae())
    elsewhere = {"revision": "main", "cache_dir": tmp_path / "cache", "token": "hf_" + "y" * 34}
    assert isinstance(vlae.VAE.from_pretrained("org/name", **elsewhere), vlae.VAE)
    assert any((tmp_path / "cache").rglob("model.safetensors"))
    server.asked.clear()
    for name in ("org/name", "hf:org/name"):
        vlae.VAE.from_pretrained(name, cache_dir=tmp_path / "cache", local_files_only=True)
    assert not server.asked
    assert "not in the cache" in refusal(
        lambda: vlae.VAE.from_pretrained("org/name", cache_dir=tmp_path / "empty", local_files_only=True)
    )
    assert "no such revision" in refusal(lambda: vlae.VAE.from_pretrained("org/name", revision="v9"))
    tiny_vae().save_pretrained(tmp_path / "mine")
    assert "is not on the Hub: revision" in refusal(
        lambda: vlae.VAE.from_pretrained(tmp_path / "mine", revision="main")
    )


def test_the_model_card_says_what_the_hub_shows_and_searches_by(server, tiny_vae, tiny_vlae):
    from huggingface_hub import ModelCard

    for model, name in ((tiny_vae(), "VAE"), (tiny_vlae(), "VLAE")):
        published(server, model)
        about = ModelCard(server.files["README.md"].decode()).data  # as the Hub's own client reads it
        assert about.library_name == "vlae"
        assert about.license is None  # that is for whoever trained it
        assert about.pipeline_tag == "unconditional-image-generation"
        assert about.tags == ["pytorch", "variational-autoencoder", name.lower()]
    own = "---\nlicense: cc-by-4.0\n---\n\n# Mine\n"
    tiny_vae().push_to_hub(REPOSITORY, token="hf_" + "x" * 34, card=own)
    assert server.files["README.md"].decode() == own


def test_only_the_files_of_a_saved_model_are_fetched_and_no_pickle(server, tiny_vae):
    published(server, tiny_vae())
    server.files.update({"pytorch_model.bin": b"\x80\x04evil", "model.pkl": b"\x80\x04evil"})
    server.asked.clear()
    vlae.load("hf:org/name")
    assert {path.rpartition("/")[2] for path in server.asked} == {"config.json", "model.safetensors"}
    del server.files["model.safetensors"]
    server.asked.clear()
    (locate("hf:org/name@main") / "model.safetensors").unlink()
    assert "no saved model" in refusal(lambda: vlae.load("hf:org/name"))
    assert not any("pytorch_model" in path or "pkl" in path for path in server.asked)


def test_damaged_weights_are_refused_by_their_checksum(server, tiny_vae):
    published(server, tiny_vae())
    weights = bytearray(server.files["model.safetensors"])
    weights[-1] ^= 1
    server.files["model.safetensors"] = bytes(weights)
    assert "checksum" in refusal(lambda: vlae.load("hf:org/name"))


def test_what_is_not_there_is_named(server):
    assert "hf:ORGANISATION/NAME" in refusal(lambda: vlae.load("hf:name"))
    assert "org/other" in refusal(lambda: vlae.load("hf:org/other"))
    assert "no such revision" in refusal(lambda: vlae.load("hf:org/name@v9"))
    assert "no saved model" in refusal(lambda: vlae.load("hf:org/name"))


def test_without_a_network_the_cache_is_used_and_else_one_line_says_so(server, tiny_vae, monkeypatch):
    published(server, tiny_vae())
    vlae.load("hf:org/name")
    server.asked.clear()
    # The client's own switch; without it, it asks again for half a minute before it gives up.
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)
    assert isinstance(vlae.load("hf:org/name"), vlae.VAE)
    assert "check the network" in refusal(lambda: vlae.load("hf:org/elsewhere"))
    assert not server.asked


def test_a_repository_that_may_not_be_written_to(server, tiny_vae):
    server.writable = False
    assert "login" in refusal(lambda: published(server, tiny_vae()))
    assert not server.files


@pytest.mark.parametrize("name", ["name", "a/b/c", "org/name@v1", "", "../x/y"])
def test_names_of_no_repository_are_refused_before_anything_is_sent(server, tiny_vae, name):
    assert "ORGANISATION/NAME" in refusal(lambda: tiny_vae().push_to_hub(name))
    assert not server.asked


def test_without_the_client_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert "pip install huggingface_hub" in refusal(lambda: vlae.load("hf:org/name"))


def test_a_mistyped_path_is_not_looked_up_on_the_hub(server):
    assert "no saved model" in refusal(lambda: vlae.load("outputs/mnst"))
    assert not server.asked
    assert hub.repository_of("outputs/mnst/model") is None

"""The server: every route, every refusal, and who may ask."""

import base64
import io
import json
import logging
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from PIL import Image

import vlae
from vlae import cli
from vlae.errors import VlaeError
from vlae.explorer import Shelf, server
from vlae.explorer.fields import Fields

CHUNKED = {"Transfer-Encoding": "chunked"}


def png(width=8, height=8):
    with io.BytesIO() as file:
        Image.fromarray(np.eye(height, width, dtype=np.uint8) * 255).save(file, "PNG")
        return file.getvalue()


def upload(client, data, model="vlae", invert="no"):
    status, _, body = client.request("POST", f"/api/upload?model={model}&invert={invert}", data)
    return status, json.loads(body)


# -- what goes well ---------------------------------------------------------------------------------------------------


def test_the_page_and_its_files(client):
    status, headers, body = client.request("GET", "/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert b"vlae explorer" in body
    for name, kind in {"app.js": "javascript", "style.css": "css", "sliders.js": "javascript"}.items():
        status, headers, body = client.request("GET", f"/static/{name}")
        assert status == 200, name
        assert kind in headers["content-type"]
        assert len(body) > 500


def test_answers_carry_the_headers_that_keep_others_out(client):
    for method, path in (("GET", "/"), ("GET", "/static/app.js"), ("GET", "/api/offer"), ("POST", "/api/none")):
        _, headers, _ = client.request(method, path, b"{}" if method == "POST" else None)
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers


def test_offer(client, models):
    status, _, body = client.request("GET", "/api/offer")
    answer = json.loads(body)
    assert status == 200
    assert answer["models"][: len(models)] == list(models)
    assert answer["max_upload"] == 100_000


@pytest.mark.parametrize("name", ["vlae", "reversed", "maps", "vae", "levels", "mixture", "labels", "attributes"])
def test_every_model_with_a_code_plays_along(client, name):
    context = {"labels": 3, "attributes": [0.5, 1.0]}.get(name)
    told = {"model": name, "context": context}
    model = client.ask("describe", model=name)
    drawn = client.ask("draw", **told, seed=3)
    chosen = client.ask("choose", **told, image=drawn["image"])
    order = client.ask("dimensions", model=name)["order"]
    assert len(chosen["code"]) == len(drawn["code"]) == model["latent"]
    moved = [*chosen["code"]]
    moved[order[0]] += 1.5
    assert client.ask("decode", **told, code=moved, drawn=True, seed=1)["seconds"] > 0
    frames = client.ask("interpolate", **told, first=drawn["code"], second=moved, steps=3, path="linear", drawn=True)
    assert len(frames["images"]) == 3
    client.ask("file", **told, image=drawn["image"])
    if model["missing"]["completion"] is None:
        done = client.ask("complete", **told, image=drawn["image"], rows=4, count=2, candidates=4, seed=1)
        assert [len(base64.b64decode(image)) for image in done["images"]] == [64, 64]


@pytest.mark.parametrize("name", ["ladder", "dae", "colour", "vqvae", "pixelcnn"])
def test_the_others_play_along_where_they_can(client, name):
    drawn = client.ask("draw", model=name, seed=1)
    client.ask("choose", model=name, image=drawn["image"])
    client.ask("decode", model=name, code=drawn["code"], drawn=True, seed=1)
    client.ask("file", model=name, image=drawn["image"])
    fields = {"first": drawn["code"], "second": drawn["code"], "steps": 3, "path": "spherical", "drawn": True}
    if client.ask("describe", model=name)["missing"]["interpolation"] is None:
        client.ask("interpolate", model=name, **fields)
    else:
        assert "interpolation needs" in client.refused("interpolate", model=name, **fields)


def test_test_images_with_labels(client):
    answer = client.ask("images", model="labels", data="digits", start=4, count=3)
    test = vlae.data.load("digits", "test", binarize="dynamic")
    assert answer["labels"] == answer["contexts"] == test.labels[4:7].tolist()
    expected = (test.tensor()[4:7] * 255).byte()
    assert [base64.b64decode(image) for image in answer["images"]] == [x.numpy().tobytes() for x in expected]
    assert answer["total"] == 240


def test_an_uploaded_picture_becomes_the_models(client):
    status, answer = upload(client, png())
    assert status == 200
    assert base64.b64decode(answer["image"]) == (np.eye(8, dtype=np.uint8) * 255).tobytes()
    assert client.ask("choose", model="vlae", image=answer["image"])["rate"] is not None


# -- what is refused --------------------------------------------------------------------------------------------------


def test_fields_are_checked(client):
    code, image = [0.0, 0.0, 0.0], base64.b64encode(bytes(64)).decode()
    wrong = [
        ("describe", {}, "model must be a string; got nothing"),
        ("describe", {"model": "../../etc/passwd"}, "no model"),
        ("describe", {"model": ["vlae"]}, "model must be a string"),
        ("images", {"model": "vlae", "data": "none"}, "no data set"),
        ("images", {"model": "vlae", "data": "digits", "count": 1000}, "count must be an integer from 1 to 60"),
        ("decode", {"model": "vlae"}, "code must be a list of finite numbers; got nothing"),
        ("decode", {"model": "vlae", "code": [0.0, "a", 0.0]}, "finite numbers; got list of 3"),
        ("decode", {"model": "vlae", "code": [0.0]}, "3 numbers; got 1"),
        ("decode", {"model": "vlae", "code": code, "seed": -1}, "seed must be an integer from 0"),
        ("decode", {"model": "vlae", "code": code, "seed": True}, "seed must be an integer"),
        ("decode", {"model": "vlae", "code": code, "drawn": 1}, "drawn must be true or false"),
        ("decode", {"model": "vlae", "code": code, "context": 3}, "takes no context"),
        ("decode", {"model": "labels", "code": code}, "conditional"),
        ("decode", {"model": "labels", "code": code, "context": 99}, "from 0 to 9"),
        ("choose", {"model": "vlae", "image": "!!"}, "base64"),
        ("choose", {"model": "vlae", "image": image[:8]}, "1x8x8"),
        ("interpolate", {"model": "vlae", "first": code, "second": code, "path": "crooked"}, "linear"),
        ("interpolate", {"model": "vlae", "first": code, "second": code, "path": "linear", "steps": 65}, "steps"),
        ("complete", {"model": "vlae", "image": image, "rows": 9}, "rows must be an integer from 0 to 8"),
        ("complete", {"model": "vlae", "image": image, "rows": 2, "candidates": 10**6}, "candidates must be"),
        ("complete", {"model": "dae", "image": image, "rows": 2}, "have none"),
    ]
    for verb, fields, reason in wrong:
        assert reason in client.refused(verb, **fields), (verb, fields)


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[1]", b"null", b"[" * 100_000, b'{"model": NaN}', b"\xff\xfe"])
def test_bodies_that_are_no_json_object(client, body):
    status, _, answer = client.request("POST", "/api/describe", body)
    assert status == 400
    assert set(json.loads(answer)) == {"error"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/api/nothing", 404),
        ("GET", "/nothing", 404),
        ("GET", "/static/../server.py", 404),
        ("GET", "/static/%2e%2e/server.py", 404),
        ("GET", "/static/%2e%2e%2f%2e%2e%2ferrors.py", 404),
        ("GET", "/api/describe", 405),
        ("DELETE", "/api/describe", 405),
        ("POST", "/", 405),
    ],
)
def test_what_is_not_there_is_json_too(client, method, path, status):
    got, _, body = client.request(method, path, b"{}" if method == "POST" else None)
    assert got == status
    assert b"import" not in body
    assert set(json.loads(body)) == {"error"}


def test_bad_uploads(client):
    for data, reason in ((b"", "empty"), (b"GIF89a?", "not a readable picture"), (b"x" * 5000, "not a readable")):
        status, answer = upload(client, data)
        assert status == 400
        assert reason in answer["error"]
    assert upload(client, png(), model="nothing")[0] == 400
    assert "auto, no, yes" in upload(client, png(), invert="maybe")[1]["error"]


def test_uploads_are_limited(client):
    status, answer = upload(client, bytes(100_001))
    assert status == 413
    assert "larger than 100 kB" in answer["error"]


def test_uploads_without_a_length_are_limited_as_they_come(client):
    def endless():
        for _ in range(400):
            yield bytes(1000)

    status, _, body = client.request("POST", "/api/upload?model=vlae", endless(), CHUNKED)
    assert status == 413, body
    status, _, body = client.request("POST", "/api/describe", iter([b'{"model"', b': "vlae"}']), CHUNKED)
    assert status == 200, body


def test_json_is_limited(client):
    assert client.request("POST", "/api/decode", bytes(server.MOST_JSON + 1))[0] == 413
    assert client.request("POST", "/api/decode", None, {"Content-Length": str(10**12)})[0] == 413
    assert client.request("POST", "/api/decode", None, {"Content-Length": "-1"})[0] in (400, 413)


FOREIGN = ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil.example", ""]


@pytest.mark.parametrize("host", FOREIGN)
def test_foreign_hosts_are_refused(client, host):
    for method, path in (("GET", "/"), ("GET", "/api/offer"), ("POST", "/api/describe")):
        status, _, body = client.request(method, path, b'{"model": "vlae"}', {"Host": host})
        assert status in (400, 421)
        assert b"vlae explorer" not in body


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1:1", "[::1]:80"])
def test_loopback_has_several_names(client, host):
    assert client.request("GET", "/api/offer", None, {"Host": host})[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "SELF"}, 200),
        ({"Origin": "SELF", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_posts_of_other_pages_are_refused(client, headers, status):
    headers = {name: value.replace("SELF", f"http://{client.host}") for name, value in headers.items()}
    got, _, body = client.request("POST", "/api/describe", b'{"model": "vlae"}', headers)
    assert got == status, body


def test_a_link_from_elsewhere_opens_the_page(client):
    assert client.request("GET", "/", None, {"Sec-Fetch-Site": "cross-site"})[0] == 200


def test_any_host_where_the_address_was_chosen(models, start):
    with start(Shelf({"vae": models["vae"]}, outputs=None), hosts=()) as client:
        assert client.request("GET", "/api/offer", None, {"Host": "my-machine:80"})[0] == 200
        headers = {"Host": "my-machine:80", "Origin": "http://evil.example"}
        assert client.request("POST", "/api/describe", b"{}", headers)[0] == 403


def test_what_nobody_expected_is_one_line_and_is_logged(client, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("secret details")

    monkeypatch.setitem(server.VERBS, "draw", broken)
    with caplog.at_level(logging.ERROR, "vlae.explorer"):
        status, answer = client.post("draw", model="vlae")
    assert status == 500
    assert "secret" not in answer["error"]
    assert "Traceback" not in answer["error"]
    assert "secret details" in caplog.text


def test_one_model_works_at_a_time(client, monkeypatch):
    """Requests that come together are answered one after the other, each with its own answer."""
    import threading
    import time

    busy, most = [0], [0]

    def slow(shelf, fields):
        busy[0] += 1
        most[0] = max(most[0], busy[0])
        time.sleep(0.02)
        busy[0] -= 1
        return {"seed": fields.whole("seed", 0, 99)}

    monkeypatch.setitem(server.VERBS, "draw", slow)
    answers = {}

    def ask(k):
        answers[k] = client.ask("draw", seed=k)["seed"]

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {k: k for k in range(8)}
    assert most == [1]


def test_numbers_that_no_json_has():
    with pytest.raises(VlaeError, match="finite"):
        Fields(b'{"code": [NaN]}').numbers("code")
    with pytest.raises(VlaeError, match="finite"):
        Fields(b'{"code": [1e300]}').numbers("code")
    with pytest.raises(VlaeError, match="finite"):
        Fields(b'{"code": [Infinity]}').numbers("code")


def test_integers_too_large_for_a_float_are_refused(client):
    large = 10**400
    assert "finite numbers" in client.refused("decode", model="vlae", code=[large, 0, 0])
    assert "finite numbers" in client.refused("decode", model="attributes", code=[0, 0, 0], context=[-large, 0])
    assert "finite numbers" in client.refused("decode", model="labels", code=[0, 0, 0], context=large)


def test_the_files_are_in_the_package_and_ask_nobody_else():
    texts = {path.name: path.read_text("utf-8") for path in server.STATIC.iterdir()}
    assert {"index.html", "style.css", "app.js"} <= set(texts)
    for name, text in texts.items():
        assert "http://" not in text and "https://" not in text and "//cdn" not in text, name


# -- running it -------------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_one_line():
    with server.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(VlaeError, match=rf"port {port} .* another --port"):
            server.listen("127.0.0.1", port)
    with pytest.raises(VlaeError, match=r"can't listen on no\.such\.host"):
        server.listen("no.such.host.invalid", 0)


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_other_addresses_than_loopback_are_warned_of(host, warned, models, monkeypatch, capsys):
    seen = {}

    class Fake:
        def run(self, sockets):
            seen["address"] = sockets[0].getsockname()[0]
            raise KeyboardInterrupt

    def make(app):
        seen["hosts"] = app.user_middleware[0].kwargs["hosts"]
        return Fake()

    monkeypatch.setattr(server, "make_server", make)
    server.serve(Shelf({"vae": models["vae"]}, outputs=None), host, 0, browser=False)
    out = capsys.readouterr().out
    assert ("warning" in out) == warned
    assert (seen["hosts"] == ()) == warned
    assert (seen["address"] == "0.0.0.0") == warned
    assert "http://" in out


def test_the_command_serves_a_saved_model_until_it_is_interrupted(tmp_path, models):
    models["vae"].save_pretrained(tmp_path / "mine")
    words = [sys.executable, "-m", "vlae", "explore", "mine", "--port", "0", "--no-open", "--max_upload", "2"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            assert "http://127.0.0.1:" in line, process.stderr.read()
            url = line.split("at ")[1].split()[0]
            with urllib.request.urlopen(f"{url}api/offer", timeout=120) as response:
                offer = json.load(response)
            assert offer["models"][0] == "mine"
            assert offer["max_upload"] == 2_000_000
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def test_the_command_says_what_is_wrong(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for words, reason in (
        (["nothing"], "no saved model"),
        (["--model", "nothing"], "no saved model"),
        (["--run", "nothing"], "is not a run"),
        (["nothing", "--model", "nothing"], "not both"),
        (["--port", "70000"], "--port must be"),
        (["--max_upload", "0"], "--max_upload must be"),
    ):
        assert cli.main(["explore", *words]) == 2
        assert reason in capsys.readouterr().err


def test_without_the_extra_the_command_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "vlae.explorer.server")
    assert cli.main(["explore"]) == 2
    assert "pip install 'vlae[explore]'" in capsys.readouterr().err


def test_models_work_on_one_thread(client, monkeypatch):
    import torch

    before = torch.get_num_threads()
    monkeypatch.setitem(server.VERBS, "draw", lambda *_: {"threads": torch.get_num_threads()})
    torch.set_num_threads(2)
    try:
        assert client.ask("draw")["threads"] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

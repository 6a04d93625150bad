"""An explorer that really listens, and a client without a library between it and the bytes."""

import http.client
import json
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

import vlae

pytest.importorskip("starlette", reason="the explorer's extra is not installed: pip install 'vlae[explore]'")
pytest.importorskip("uvicorn", reason="the explorer's extra is not installed: pip install 'vlae[explore]'")

from vlae.explorer import Shelf
from vlae.explorer.background import serving

SMALL = {"decoder_layers": 1, "channels": 4, "encoder_widths": [4], "encoder_hidden": 8, "flow_hidden": [8]}


@dataclass
class Client:
    """Requests to one server."""

    url: str

    @property
    def host(self):
        return self.url.removeprefix("http://").rstrip("/")

    def request(self, method, path, body=None, headers=None):
        """Status, headers and body of one request; `headers` may replace the Host."""
        connection = http.client.HTTPConnection(self.host, timeout=60)
        try:
            chunked = "Transfer-Encoding" in (headers or {})
            connection.request(method, path, body, headers or {}, encode_chunked=chunked)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def post(self, verb, **fields):
        """Status and JSON of a verb."""
        status, _, body = self.request("POST", f"/api/{verb}", json.dumps(fields))
        return status, json.loads(body)

    def ask(self, verb, **fields):
        """JSON of a verb that must go well."""
        status, answer = self.post(verb, **fields)
        assert status == 200, answer
        return answer

    def refused(self, verb, **fields):
        """The one line with which a verb is refused."""
        status, answer = self.post(verb, **fields)
        assert status == 400, (status, answer)
        assert list(answer) == ["error"]
        assert "\n" not in answer["error"]
        return answer["error"]


def small_models():
    """Every kind of model, small and untrained, of 8x8 images."""
    shape = (1, 8, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = {
            "vlae": vlae.VLAE(shape, latent_dim=3, flow_order="same", **SMALL),
            "reversed": vlae.VLAE(shape, latent_dim=3, **SMALL),
            "maps": vlae.VLAE(shape, latent_maps=1, **{**SMALL, "encoder_widths": [4, 4]}),
            "vae": vlae.VAE(shape, latent_dim=3, architecture="mlp", widths=[8]),
            "levels": vlae.VLAE(
                shape, latent_dim=3, likelihood="categorical", likelihood_options={"levels": 17}, flow_steps=0, **SMALL
            ),
            "mixture": vlae.VAE(shape, latent_dim=3, architecture="mlp", widths=[8], prior="mixture"),
            "labels": vlae.VLAE(shape, latent_dim=3, classes=10, **SMALL),
            "attributes": vlae.VAE(shape, latent_dim=3, architecture="mlp", widths=[8], attributes=2),
            "ladder": vlae.LadderVAE(shape, latent_dims=(3, 2), hidden=8),
            "vqvae": vlae.VQVAE(shape, codes=8, code_dim=4, widths=[8], prior_layers=1, prior_channels=4),
            "dae": vlae.DenoisingAutoencoder(shape, latent_dim=3, architecture="mlp", widths=[8]),
            "colour": vlae.VAE((3, 8, 8), latent_dim=3, architecture="mlp", widths=[8], likelihood="gaussian"),
            "pixelcnn": vlae.PixelCNN(shape, decoder_layers=1, channels=4),
        }
    return {name: model.eval() for name, model in models.items()}


@pytest.fixture(scope="session")
def models():
    """By name; nobody changes them."""
    return small_models()


@pytest.fixture(scope="session")
def start():
    """A server of one's own: a context with a client of it."""

    @contextmanager
    def serve(shelf, **options):
        with serving(shelf, **options) as url:
            yield Client(url)

    return serve


@pytest.fixture(scope="module")
def client(models, start):
    """A server of the small models."""
    models["vlae"].metadata = {"data": {"name": "digits", "binarize": "dynamic"}, "protocol": "digits, for a test"}
    models["labels"].metadata = models["vlae"].metadata
    with start(Shelf(models, outputs=None), max_upload=100_000) as client:
        yield client

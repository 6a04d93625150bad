"""Exported programs give the model's own numbers at any batch size; what can't be exported is said in one line."""

import json
import os

import pytest
import torch

import vlae
from vlae import VlaeError
from vlae.models import exporting
from vlae.models.exporting import export

SMALL = {"latent_dim": 3, "encoder_widths": (2,), "encoder_hidden": 4, "channels": 2, "context_channels": 2}
VLAE = {"flow_hidden": (4,), "flow_steps": 1, "decoder_layers": 0, **SMALL}
MODELS = {
    "conditional": lambda: vlae.ConditionalVAE((3, 4, 4), classes=3, latent_dim=2, architecture="mlp", widths=[4]),
    "autoregressive": lambda: vlae.VLAE((1, 5, 4), **VLAE).double(),
    "codes": lambda: vlae.VQVAE((1, 4, 4), codes=8, code_dim=2, widths=[4], prior_layers=0, prior_channels=2),
    "pixelcnn": lambda: vlae.PixelCNN((1, 4, 4), decoder_layers=0, channels=2),
}


def run(path, *inputs):
    found = torch.export.load(path).module()(*inputs)
    return (found,) if isinstance(found, torch.Tensor) else found


@pytest.mark.parametrize("name", MODELS)
def test_programs_give_the_models_numbers_at_any_batch_size(tmp_path, name):
    torch.manual_seed(0)
    model = MODELS[name]().train()
    differences = export(model, tmp_path / "out")
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())  # left as it was
    model.eval()
    dtype = next(model.parameters()).dtype
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
    x = torch.randint(0, 2, (7, *model.image_shape)).to(dtype)
    context = (torch.tensor([0, 1, 2, 0, 1, 2, 0]),) if name == "conditional" else ()
    told = {"context": context[0]} if context else {}
    with torch.no_grad():
        q = model.encode(x, **told)
        p = model.decode(q.mean, **told)
        if name != "pixelcnn":
            outputs = run(tmp_path / "out" / "encoder.pt2", x, *context)
            torch.testing.assert_close(outputs[0], q.mean, **tolerance)
            assert len(outputs) == (1 if name == "codes" else 2)
            if len(outputs) == 2:
                torch.testing.assert_close(outputs[1], q.stddev, **tolerance)
            (decoded,) = run(tmp_path / "out" / "decoder.pt2", q.mean, *context)
            torch.testing.assert_close(decoded, p.context if model.autoregressive else p.parameters, **tolerance)
        if model.autoregressive:
            given = (x,) if name == "pixelcnn" else (x, q.mean)
            (parameters,) = run(tmp_path / "out" / "conditionals.pt2", *given)
            # What the numbers are for: with the likelihood they are log p(x|z).
            nats = model.likelihood(parameters.movedim(2, -1)).log_prob(x).flatten(1).sum(1)
            torch.testing.assert_close(nats, p.log_prob(x), **tolerance)
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert set(differences) == {f"{part}.pt2" for part in about["parts"]}
    assert sorted(os.listdir(tmp_path / "out")) == sorted([*differences, "export.json"])


@pytest.mark.parametrize("name", ["conditional", "autoregressive"])
def test_onnx_too(tmp_path, name):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = MODELS[name]().float().eval()
    parts = {"encoder", "decoder", *(["conditionals"] if name == "autoregressive" else [])}
    assert {f"{part}.onnx" for part in parts} < set(export(model, tmp_path, onnx=True))
    x = torch.randint(0, 2, (4, *model.image_shape)).float()
    told = {"context": torch.tensor([0, 1, 2, 0])} if name == "conditional" else {}

    def run_onnx(part, **inputs):
        session = onnxruntime.InferenceSession(tmp_path / f"{part}.onnx")
        return [torch.from_numpy(value) for value in session.run(None, {k: v.numpy() for k, v in inputs.items()})]

    def close(found, expected):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    with torch.no_grad():
        q = model.encode(x, **told)
        mean, stddev = run_onnx("encoder", x=x, **told)
        close(mean, q.mean)
        close(stddev, q.stddev)
        p = model.decode(q.mean, **told)
        (decoded,) = run_onnx("decoder", z=q.mean, **told)
        close(decoded, p.context if model.autoregressive else p.parameters)
        if model.autoregressive:
            (decoded,) = run_onnx("conditionals", x=x, z=q.mean)
        # What the numbers are for: with the likelihood they are log p(x|z).
        nats = model.likelihood(decoded.movedim(2, -1)).log_prob(x).flatten(1).sum(1)
        close(nats, p.log_prob(x))


def test_what_onnx_runtime_can_not_run_is_refused_in_one_line(tmp_path):
    """It has no convolutions of float64."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    with pytest.raises(VlaeError, match=r"can't run the encoder.*float32") as caught:
        export(MODELS["autoregressive"](), tmp_path / "out", onnx=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_without_its_packages_onnx_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(VlaeError, match="pip install 'vlae\\[onnx\\]'"):
        export(MODELS["pixelcnn"](), tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: vlae.LadderVAE((1, 4, 4), latent_dims=(2, 2), hidden=4, widths=[4]), "a LadderVAE can't be exported"),
        (lambda: vlae.VAE((1, 4, 4), latent_dim=2, architecture="mlp", posterior="iaf"), "inverse autoregressive flow"),
    ],
)
def test_what_can_not_be_exported_says_so(tmp_path, make, reason):
    with pytest.raises(VlaeError, match=reason) as caught:
        export(make(), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_program_that_differs_is_not_written(tmp_path, monkeypatch):
    """Guards the check itself: a part that is wrong at another batch size alone."""
    model = MODELS["pixelcnn"]()
    right = exporting._reference(model)["conditionals"]
    wrong = {"conditionals": lambda x, **told: [1.01 * right(x, **told)[0]]}
    monkeypatch.setattr(exporting, "_reference", lambda model: wrong)
    with pytest.raises(VlaeError, match="differs from the model"):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sigma", [None, 0.25, "optimal", "pixel"])
def test_the_scale_that_no_output_holds_is_in_the_description(tmp_path, sigma):
    options = {"architecture": "mlp", "widths": [4], "likelihood": "gaussian", "likelihood_options": {"sigma": sigma}}
    torch.manual_seed(0)
    model = vlae.VAE((1, 4, 4), latent_dim=2, **options).eval()
    export(model, tmp_path)
    about = json.loads((tmp_path / "export.json").read_text())["likelihood"]
    assert ("sigma" in about) == (sigma != "pixel")
    if sigma != "pixel":
        scale = model.likelihood(torch.zeros(1, 1)).sigma
        assert about["sigma"] == pytest.approx(scale.item(), rel=1e-6)

"""The VQ-VAE: a true bound, gradients that go where they should, a codebook that lives, and all that models can do."""

import csv
import itertools
import json
import math

import pytest
import torch

import vlae
from vlae import VQVAE, VlaeError
from vlae.cli import main
from vlae.data import ImageDataset, load
from vlae.evaluation import evaluate
from vlae.evaluation.codes import code_means
from vlae.evaluation.measurements import Settings
from vlae.evaluation.report import show
from vlae.evaluation.suite import measure
from vlae.models.base import LatentVariableModel
from vlae.objectives import ELBO
from vlae.training import run
from vlae.training.callbacks import epoch_line
from vlae.training.checkpoints import read_checkpoint
from vlae.training.settings import DataSettings, TrainerSettings
from vlae.training.task import OptimizerSettings

TINY = {"codes": 5, "code_dim": 3, "widths": [4], "prior_layers": 1, "prior_channels": 6}


def make(image_shape=(1, 5, 4), **options):
    """A small model in float64 and eval mode whose codes lie on data."""
    model = VQVAE(image_shape, **{**TINY, **options}).double()
    levels = model.likelihood.levels or 2
    model.initialise(torch.randint(0, levels, (40, *image_shape)).double() / (levels - 1))
    return model.eval()


def every_map(model):
    """All code maps, int64 [K^(h w), h, w]."""
    codes, (height, width) = len(model.codebook.vectors), model.latent_shape
    return torch.tensor(list(itertools.product(range(codes), repeat=height * width))).view(-1, height, width)


def scattered(model):
    """The model with weights far from where they start, so that it is sure of what it says."""
    with torch.no_grad():
        for parameter in [*model.decoder.parameters(), *model.prior_network.parameters()]:
            parameter.mul_(2.5)
    return model


# -- the bound --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
@pytest.mark.parametrize("architecture", ["conv", "resnet"])
def test_the_bound_is_one_term_of_the_likelihood(all_images, architecture, codebook):
    model = scattered(make((1, 3, 3), codes=3, architecture=architecture, codebook=codebook))
    images, maps = all_images((1, 3, 3)), every_map(model)
    with torch.no_grad():
        log_prior = model.prior().log_prob(maps)
        log_joint = torch.stack([model.decode(k.expand(512, 2, 2)).log_prob(images) for k in maps], 1) + log_prior
        bound, codes = model.elbo(images), model.encode(images).mean
        assert log_prior.exp().sum().item() == pytest.approx(1, abs=1e-12)
        assert log_joint.exp().sum().item() == pytest.approx(1, abs=1e-12)
        number = (codes.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(1)
        assert len(number.unique()) > 3
        torch.testing.assert_close(bound.elbo, log_joint[torch.arange(512), number])
        assert (bound.elbo <= log_joint.logsumexp(1)).all()
        assert 1e-3 < bound.elbo.exp().sum().item() <= 1
        assert torch.equal(bound.z, codes)
        assert torch.equal(bound.rate_per_dimension.sum((1, 2)), bound.rate)


def test_log_likelihood_is_the_bound_for_any_number_of_samples(binary):
    model, x = make(), binary(6)
    bound = model.elbo(x)
    torch.testing.assert_close(model.elbo(x, analytic=False).elbo, bound.elbo)
    for samples in (1, 7):
        torch.testing.assert_close(model.log_likelihood(x, samples), bound.elbo)
    (weights,) = model.log_weights(x, 3)
    assert torch.equal(weights, bound.elbo.expand(3, 6))
    assert not weights.requires_grad
    with pytest.raises(VlaeError, match="samples must be"):
        model.log_likelihood(x, 0)


def test_it_is_what_any_latent_variable_model_would_say(binary):
    """The general bound and its importance weights, from encode, decode and prior alone, are these."""
    model, x = make(), binary(6)
    bound, general = model.elbo(x), LatentVariableModel.elbo(model, x)
    for name in ("distortion", "rate", "rate_per_dimension", "z"):
        torch.testing.assert_close(getattr(bound, name), getattr(general, name), rtol=1e-12, atol=1e-12)
    weights = torch.cat(list(LatentVariableModel.importance_weights(model, x, 3, chunk=7)))
    torch.testing.assert_close(weights, bound.elbo.expand(3, 6))


def test_encoding_is_certain_of_the_nearest_codes(binary):
    model, x = make(), binary(6)
    q = model.encode(x)
    features = model.encoder(x).movedim(1, -1)
    nearest = (features.unsqueeze(-2) - model.codebook.vectors).square().sum(-1).argmin(-1)
    assert torch.equal(q.mean, nearest)
    assert torch.equal(q.rsample((2,)), nearest.expand(2, -1, -1, -1))
    assert q.rsample().dtype == torch.int64
    assert torch.equal(q.log_prob(nearest), torch.zeros(6, dtype=torch.float64))
    nearest[2, 0, 0] = (nearest[2, 0, 0] + 1) % 5
    assert q.log_prob(nearest).tolist() == [0, 0, -torch.inf, 0, 0, 0]


# -- training ---------------------------------------------------------------------------------------------------------


def gradients(model, names):
    """The gradients of modules' parameters as one vector; None stands for zeros."""
    parameters = [p for name in names for p in getattr(model, name).parameters()]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_distortion_trains_the_decoder_and_straight_through_the_encoder(binary, codebook):
    model, x = make(architecture="resnet", codebook=codebook), binary(6)
    model.elbo(x).distortion.sum().backward()
    found = gradients(model, ["encoder", "decoder"])
    assert not gradients(model, ["codebook", "prior_network"]).any()
    model.zero_grad()
    features = model.encoder(x)
    vectors = model.codebook(model.encode(x).mean).detach().requires_grad_()
    (-model._decode_vectors(vectors).log_prob(x)).sum().backward()
    features.backward(vectors.grad.movedim(-1, 1))  # as if rounding were the identity
    torch.testing.assert_close(found, gradients(model, ["encoder", "decoder"]))
    assert (gradients(model, ["encoder"]) != 0).any()


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_rate_trains_the_prior_alone(binary, codebook):
    model = make(codebook=codebook)
    model.elbo(binary(6)).rate.sum().backward()
    assert not gradients(model, ["encoder", "decoder", "codebook"]).any()
    without = [name for name, p in model.prior_network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@pytest.mark.parametrize("beta", [0.0, 0.25, 3.0])
@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_commitment_weighs_the_encoders_term_and_not_the_codebooks(binary, codebook, beta):
    model, x = make(codebook=codebook, commitment=beta), binary(6)
    features = model.features(x).detach()
    codes = model.codebook.nearest(features)
    gaps = features - model.codebook(codes).detach()
    errors = gaps.square().sum((1, 2, 3))
    penalty = model.elbo(x).penalty
    torch.testing.assert_close(penalty, (beta + (codebook == "gradient")) * errors)
    assert errors.min() > 0
    penalty.sum().backward()
    found = gradients(model, ["encoder"])
    assert not gradients(model, ["decoder", "prior_network"]).any()
    if codebook == "gradient":
        expected = torch.zeros_like(model.codebook.vectors).index_put((codes,), -2 * gaps, accumulate=True)
        torch.testing.assert_close(model.codebook.vectors.grad, expected)  # whatever beta is
    model.zero_grad()
    model.features(x).backward(2 * beta * gaps)
    torch.testing.assert_close(found, gradients(model, ["encoder"]))
    assert found.any() == (beta > 0)


def test_codebook_moves_in_training_steps_alone(binary):
    model, x = make(), binary(8)

    def moved(action):
        before = model.codebook.vectors.clone(), model.codebook.usage.clone()
        action()
        return not (torch.equal(before[0], model.codebook.vectors) and torch.equal(before[1], model.codebook.usage))

    actions = [
        lambda: model.elbo(x),
        lambda: model(x),
        lambda: model.log_likelihood(x, 2),
        lambda: model.perplexity(x),
        lambda: model.reconstruct(x),
        lambda: model.sample(2),
    ]
    assert not any(map(moved, actions))
    model.train()
    with torch.no_grad():
        assert not any(map(moved, actions))
    assert not any(map(moved, actions[2:]))
    assert moved(lambda: model.elbo(x)) and moved(lambda: model(x)) and moved(lambda: model.compute_loss(x))


def test_the_loss_decodes_the_codebook_before_its_move(binary):
    model, x = make(architecture="resnet", decay=0.0).train(), binary(8)
    before = model.codebook.vectors.clone()
    bound = model.elbo(x)
    assert not torch.equal(before, model.codebook.vectors)
    (-bound.elbo).sum().backward()  # the move must not disturb what the gradient needs
    model.codebook.vectors.copy_(before)
    torch.testing.assert_close(bound.distortion, -model.decode(bound.z).log_prob(x))


@pytest.mark.parametrize("start", [lambda m, x: m.initialise(x), lambda m, x: m.train().elbo(x)])
def test_codes_start_on_the_first_batch(binary, start):
    x = binary(40)
    model = VQVAE((1, 5, 4), **{**TINY, "architecture": "resnet", "decay": 0.999999}).double().eval()
    model.elbo(x)
    assert not model.codebook.started  # evaluation starts nothing
    start(model, x)
    assert model.codebook.started
    features = model.features(x).flatten(0, -2)
    gaps = (model.codebook.vectors[:, None] - features).norm(dim=-1).min(1).values
    assert gaps.max() < 1e-4 * features.std()
    assert model.perplexity(x) > 2


def test_perplexity_is_that_of_the_batch(binary):
    model, x = make(), binary(9)
    shares = torch.bincount(model.encode(x).mean.flatten(), minlength=5) / model.encode(x).mean.numel()
    expected = torch.distributions.Categorical(shares.double()).entropy().exp()
    torch.testing.assert_close(model.perplexity(x), expected)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.testing.assert_close(model.train().perplexity(x), expected)  # in eval mode, whatever mode it is in
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.codebook.vectors[1:] = 1e3
    assert model.perplexity(x).item() == pytest.approx(1)


def test_training_lowers_the_bound_and_revives_the_codes():
    x = torch.zeros(64, 1, 8, 8, dtype=torch.float64)
    x[torch.arange(64), 0, torch.arange(64) // 8] = 1  # one row is lit
    x[torch.arange(64), 0, :, torch.arange(64) % 8] = 1  # and one column
    model = VQVAE((1, 8, 8), **{**TINY, "codes": 16, "widths": [8, 8], "architecture": "resnet", "decay": 0.9}).double()
    model.initialise(x)
    model.codebook.vectors[4:] = 1e3  # dead
    assert model.perplexity(x) < 5
    before = model.eval().elbo(x)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model.train()
    for _ in range(80):
        optimizer.zero_grad()
        model.compute_loss(x).loss.backward()
        optimizer.step()
    after = model.eval().elbo(x)
    assert after.distortion.mean() < 0.5 * before.distortion.mean()
    assert after.rate.mean() < before.rate.mean()
    assert model.perplexity(x) > 5


# -- a run ------------------------------------------------------------------------------------------------------------


def train(directory, epochs, resume=False, stop_after=None, monkeypatch=None):
    torch.manual_seed(1)
    model = VQVAE((1, 8, 8), codes=12, code_dim=4, widths=[8], prior_layers=1, prior_channels=8, decay=0.9)
    if stop_after:
        monkeypatch.setattr(run.Task, "on_train_epoch_start", stopping(stop_after))
    try:
        return run.train(
            model,
            ELBO(),
            OptimizerSettings("adamax", lr=0.01),
            DataSettings("digits", binarize="dynamic", batch_size=200),
            TrainerSettings(max_epochs=epochs, precision="32-true", accelerator="cpu", progress_bar=False),
            directory,
            config="",
            seed=3,
            resume=resume,
        )
    finally:
        if stop_after:
            monkeypatch.undo()


def stopping(epoch):
    def on_train_epoch_start(self):
        if self.current_epoch == epoch:
            raise KeyboardInterrupt
        self.training_terms = []

    return on_train_epoch_start


def test_a_resumed_run_is_bit_exact_and_averaged_weights_fit_the_codebook(tmp_path, monkeypatch):
    train(tmp_path / "whole", 6)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", 6, stop_after=3, monkeypatch=monkeypatch)
    train(tmp_path / "cut", 6, resume=True)
    whole, cut = (read_checkpoint(tmp_path / name / "ckpts" / "last.ckpt") for name in ("whole", "cut"))
    assert whole["global_step"] == 6 * 5
    for part in ("state_dict", "current_model_state"):
        assert whole[part].keys() == cut[part].keys()
        assert all(torch.equal(whole[part][key], cut[part][key]) for key in whole[part]), part

    averaged, current = whole["state_dict"], whole["current_model_state"]
    for name in ("vectors", "usage"):  # buffers: copied, not averaged
        assert torch.equal(averaged[f"model.codebook.{name}"], current[f"model.codebook.{name}"])
    assert any(not torch.equal(averaged[key], current[key]) for key in averaged)
    x, elbos = vlae.data.load("digits", "validation", binarize="dynamic").tensor(), []
    for state in (averaged, current):
        model = VQVAE((1, 8, 8), codes=12, code_dim=4, widths=[8], prior_layers=1, prior_channels=8).eval()
        model.load_state_dict({key.removeprefix("model."): value for key, value in state.items() if "model." in key})
        elbos.append(model.elbo(x).elbo.mean().item())
    assert elbos[0] == pytest.approx(elbos[1], rel=0.05)


def test_trains_evaluates_and_samples_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "--model VQVAE --model.codes 8 --model.code_dim 4 --model.widths [8,8] --model.prior_layers 1"
    words += " --model.prior_channels 8 --data.name digits --data.binarize dynamic"
    trainer = (
        "--trainer.max_epochs 1 --trainer.precision 32-true --trainer.accelerator cpu --trainer.progress_bar false"
    )
    assert main(["train", *words.split(), *trainer.split(), "--run.name", "vq"]) == 0
    (row,) = csv.DictReader((tmp_path / "outputs/vq/logs/metrics.csv").open())
    assert float(row["validation/rate"]) > 0
    assert 1 <= float(row["validation/perplexity"]) <= 8
    assert "validation/active_units" not in row
    words = ["eval", "--run", "outputs/vq", "--only", "bound", "nll", "--nll_samples", "3", "--nll_images", "0"]
    assert main(words) == 0
    result = json.loads((tmp_path / "outputs/vq/reports/evaluation.json").read_text())
    assert result["nll"] == pytest.approx(result["negative_elbo"], abs=1e-4)
    shown = capsys.readouterr().out
    assert f"{result['perplexity']:.2f}" in shown and f"the codebook has {result['codes']} codes" in shown
    rows = csv.DictReader((tmp_path / "outputs/vq/reports/metrics.csv").open())
    written = {row["metric"]: float(row["value"]) for row in rows}
    assert written["perplexity"] == result["perplexity"] and result["active_units"] is None
    assert written["codes_in_use"] == result["codes_in_use"]
    assert main(["sample", "prior", "--run", "outputs/vq", "--count", "3"]) == 0
    assert main(["viz", "recon-grid", "--run", "outputs/vq", "--count", "3"]) == 0


# -- what all models do -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"likelihood": "categorical", "likelihood_options": {"levels": 4}}])
def test_evaluation(options):
    model = make(**options)
    levels = model.likelihood.levels
    x = torch.randint(0, levels, (6, 1, 5, 4)).double() / (levels - 1)
    result = evaluate(model, lambda: [(x[:4], range(4)), (x[4:], range(4, 6))], nll_samples=5)
    bound = model.elbo(x)
    assert result.negative_elbo == pytest.approx(-bound.elbo.mean().item())
    assert (result.latent_dim, len(result.bits_per_latent)) == (6, 6)
    assert result.nll == pytest.approx(result.negative_elbo)
    assert result.ess == pytest.approx(5)
    shuffled = -model.decode(bound.z.roll(1, 0)).log_prob(x)
    assert result.shuffled_gap == pytest.approx((shuffled - bound.distortion).mean().item())
    shares = [share for k in range(5) if (share := (bound.z == k).double().mean().item())]
    assert result.active_units is None
    assert (result.codes_in_use, result.codes) == (len(shares), 5)
    assert result.perplexity == pytest.approx(math.prod(share**-share for share in shares))
    assert result.perplexity == pytest.approx(model.perplexity(x).item())


def test_evaluation_does_not_depend_on_the_batch_size(binary):
    model, x = make(), binary(13)

    def batches(size):
        return lambda: [(x[i : i + size], range(i, min(i + size, 13))) for i in range(0, 13, size)]

    first, *others = (evaluate(model, batches(size), nll_samples=2).to_dict() for size in (13, 1, 4))
    assert 1 < first["codes_in_use"] <= 5 and 1 < first["perplexity"] < first["codes_in_use"] + 1e-9
    for other in others:
        assert other.keys() == first.keys()
        for name, value in other.items():
            if name == "nll_by_samples":  # the NLL once more
                continue
            assert value == (None if first[name] is None else pytest.approx(first[name], abs=1e-9)), name


def test_the_training_line_shows_the_perplexity():
    row = {"epoch": 2, "validation/rate": 1.0, "validation/distortion": 3.0, "validation/elbo": -4.0}
    row |= {"validation/perplexity": 3.14159, "train/images_per_second": 10.0}
    line = epoch_line(row, 5, 6)
    assert "perplexity of the codes 3.1" in line and "active" not in line
    other = {**{key: row[key] for key in row if key != "validation/perplexity"}, "validation/active_units": 4.0}
    assert "active units 4/6" in epoch_line(other, 5, 6) and "perplexity" not in epoch_line(other, 5, 6)


def test_the_report_shows_codes_and_no_units(binary, capsys):
    data = ImageDataset.from_any(binary(6).float(), split="test")
    found = measure(make(), data, None, Settings(only=("bound",)))
    found.values |= {"codes_in_use": 4.0, "perplexity": 3.14159}
    show(found)
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "perplexity [codes] 3.14" in shown and "codes in use [codes] 4" in shown
    assert "the codebook has 5 codes" in shown
    assert "active" not in shown and "density of z" not in shown


def test_probes_read_the_vectors_of_the_codes():
    data = load("digits", "test").subset(7)
    model = make((1, 8, 8), likelihood="categorical", likelihood_options={"levels": 17})
    expected = model.codebook.vectors[model.encode(data.tensor().double()).mean].flatten(1)
    assert expected.shape == (7, 16 * 3)
    torch.testing.assert_close(code_means(model, data, batch_size=4), expected)


def test_samples_come_from_the_prior_and_follow_the_generator():
    model = make()
    first, again = (model.sample(3, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    assert first.shape == (3, 1, 5, 4)
    assert torch.equal(first, again)
    generator = torch.Generator().manual_seed(2)
    codes = model.prior().sample((3,), generator=generator)
    assert torch.equal(first, model.decode(codes).sample(generator=generator))
    assert torch.equal(model.sample(2, temperature=0, pixel_temperature=1e-6)[0], model.sample(1, 0, 1e-6)[0])
    assert vlae.sampling.prior_samples(model, 5, batch_size=2).shape == (5, 1, 5, 4)
    assert vlae.sampling.decompressions(model, first).shape == first.shape


def test_reconstructions_decode_the_codes(binary):
    model, x = make(), binary(4)
    assert torch.equal(model.reconstruct(x), model.decode(model.encode(x).mean).mean)


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_save_and_load(binary, tmp_path, codebook):
    model, x = make(codebook=codebook), binary(4)
    again = vlae.load(model.save_pretrained(tmp_path / "model"))
    assert type(again) is VQVAE
    assert torch.equal(again.elbo(x).elbo, model.elbo(x).elbo)
    assert torch.equal(again.codebook.usage, model.codebook.usage)


def test_colour_images_with_channel_means():
    options = {"likelihood": "logistic_mixture", "likelihood_options": {"channel_means": True, "levels": 4}}
    model = make((3, 4, 4), **options)
    x = torch.randint(0, 4, (2, 3, 4, 4)).double() / 3
    assert model.elbo(x).elbo.isfinite().all()
    assert model(x).reconstruction.shape == x.shape
    assert model.sample(2).shape == (2, 3, 4, 4)


def test_mixed_precision_trains_in_full_precision_where_codes_are_chosen(binary):
    model, x = VQVAE((1, 5, 4), **TINY).train(), binary(8).float()
    with torch.autocast("cpu", torch.bfloat16):
        bound = model.elbo(x)
    (bound.penalty - bound.elbo).sum().backward()
    assert bound.elbo.isfinite().all()
    assert bound.elbo.dtype == model.codebook.vectors.dtype == torch.float32


@pytest.mark.parametrize(
    "z",
    [
        torch.zeros(2, 3, 2),
        torch.zeros(2, 3, 3, dtype=torch.int64),
        torch.full((2, 3, 2), 5),
        torch.full((2, 3, 2), -1),
    ],
)
def test_what_is_no_code_is_refused(z):
    with pytest.raises(VlaeError, match=r"expected (codes|latents)") as caught:
        make().decode(z)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codes": 1}, "codes must be 2 or more"),
        ({"code_dim": 0}, "code_dim must be 1 or more"),
        ({"architecture": "mlp"}, "must be 'conv' or 'resnet'"),
        *(
            ({name: value}, f"{name} must be a number of 0 or more; got")
            for name in ("beta", "commitment")
            for value in (-1.0, float("nan"), float("inf"), "1", None, True, [1.0])
        ),
        *(({name: value}, name) for name in ("decay", "revival") for value in ("a", None, float("nan"), True)),
        ({"codebook": "kmeans"}, "codebook must be"),
        ({"decay": 1.0}, "decay"),
        ({"revival": 2.0}, "revival"),
        ({"widths": []}, "at least one stride-2 stage"),
        ({"widths": [4] * 9}, "too many"),
        ({"prior_layers": -1}, "0 or more"),
        ({"prior_channels": 0}, "prior_channels must be 1 or more"),
        ({"prior_stacks": "three"}, "stacks must be"),
        ({"likelihood": "no"}, "likelihood"),
        ({"image_shape": (0, 3, 3)}, "image_shape must be"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(VlaeError, match=message) as caught:
        VQVAE(**{"image_shape": (1, 8, 8), **options})
    assert len(str(caught.value).splitlines()) == 1


def test_a_context_is_refused(binary):
    with pytest.raises(VlaeError, match="takes no context"):
        make().elbo(binary(2), context=torch.zeros(2, dtype=torch.int64))


# -- the textbook's names ---------------------------------------------------------------------------------------------


def test_from_a_textbooks_names():
    settings = {"in_channels": 3, "num_embeddings": 20, "embedding_dim": 6, "hidden_dims": [4, 8]}
    given = {**settings, "commitment_cost": 0.5, "image_size": 16}
    model = VQVAE.from_config(given)
    assert (model.image_shape, model.latent_shape) == ((3, 16, 16), (4, 4))
    assert model.codebook.vectors.shape == (20, 6)
    assert model.commitment == 0.5
    assert "num_embeddings" in given  # left as it was
    assert VQVAE.from_config({}).image_shape == (1, 28, 28)


@pytest.mark.parametrize(
    "config",
    [{"num_embedding": 8}, {"num_embeddings": 8, "codes": 8}, {"architecture": "mlp"}, {"input_dim": 784}],
)
def test_bad_configurations_are_refused_with_one_line(config):
    with pytest.raises(VlaeError) as caught:
        VQVAE.from_config(config)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("beta", [None, 0.0, 3.0])
def test_textbook_output_and_loss(binary, flat, beta):
    model, x = make(beta=2.0), binary(4)
    given, bound = x.flatten(1) if flat else x, model.elbo(x)
    output, loss = model(given), model.compute_loss(given, beta)
    assert output._fields == ("reconstruction", "vq_loss", "perplexity", "codes")
    mean = model.reconstruct(x)
    assert torch.equal(output.reconstruction, mean.flatten(1) if flat else mean)
    assert torch.equal(output.codes, bound.z)
    torch.testing.assert_close(output.perplexity, model.perplexity(x))
    torch.testing.assert_close(output.vq_loss, bound.penalty.mean())
    assert loss._fields == ("loss", "reconstruction_loss", "kl_loss", "vq_loss")
    torch.testing.assert_close(loss.reconstruction_loss, bound.distortion.mean())
    torch.testing.assert_close(loss.kl_loss, bound.rate.mean())
    torch.testing.assert_close(loss.vq_loss, bound.penalty.mean())
    expected = bound.distortion + (2.0 if beta is None else beta) * bound.rate + bound.penalty
    torch.testing.assert_close(loss.loss, expected.mean())

"""Conditional models: what they are told reaches posterior and likelihood image by image, or is refused in one line."""

import pytest
import torch

import vlae
from vlae import VlaeError
from vlae.data import ImageDataset
from vlae.evaluation.report import evaluate_dataset
from vlae.models.context import Condition, ContextPlane
from vlae.sampling import complete, decompressions, prior_samples

SHAPE = (1, 5, 4)


@pytest.fixture(params=["vae", "vlae", "maps"])
def conditional(request, tiny_vae, tiny_vlae):
    """A factory of small conditional models of three kinds."""

    def make(**options):
        options = options or {"classes": 3}
        if request.param == "maps":
            settings = {"architecture": "resnet", "widths": [4], "latent_maps": 2}
            return vlae.VAE(SHAPE, **settings, **options).double().eval()
        return (tiny_vae if request.param == "vae" else tiny_vlae)(SHAPE, **options)

    return make


def test_every_part_depends_on_the_context(conditional, binary):
    model, x = conditional(), binary(4)
    labels = torch.tensor([0, 1, 2, 0])
    other = torch.tensor([1, 1, 2, 0])
    q, r = model.encode(x, labels), model.encode(x, other)
    assert (q.mean != r.mean).flatten(1).any(1).tolist() == [True, False, False, False]
    z = q.mean.detach()
    p, s = (model.decode(z, context=c).log_prob(x) for c in (labels, other))
    assert (p != s).tolist() == [True, False, False, False]
    bound = model.elbo(x, context=labels)
    bound.elbo.sum().backward()
    assert (model.condition.embed.weight.grad != 0).any(1).all()  # each label occurs
    torch.testing.assert_close(
        bound.elbo, model.decode(bound.z, context=labels).log_prob(x) - bound.rate, atol=1e-12, rtol=0
    )


def test_each_label_has_a_distribution_of_its_own(tiny_vlae, all_images):
    model, images = tiny_vlae((1, 3, 3), classes=2), all_images((1, 3, 3))
    z = torch.randn(1, 3).double().expand(512, 3)
    masses = [model.decode(z, context=torch.full((512,), c)).log_prob(images).exp() for c in (0, 1)]
    for mass in masses:
        assert mass.sum().item() == pytest.approx(1, abs=1e-10)
    assert (masses[0] - masses[1]).abs().max() > 1e-6


def test_importance_weights_keep_each_image_beside_its_context(conditional, binary):
    model, x, labels = conditional(), binary(3), torch.tensor([2, 0, 1])

    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = model.log_likelihood(x, 7, generators(0, 1, 2), chunk=6, context=labels)
    alone = [model.log_likelihood(x[i : i + 1], 7, generators(i), context=labels[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-10, rtol=0)
    wrong = model.log_likelihood(x, 7, generators(0, 1, 2), context=labels.flip(0))
    assert ((wrong - together).abs() > 1e-9).tolist() == [True, False, True]


def test_attributes_are_standardised_by_the_first_batch(conditional, binary):
    model, x = conditional(attributes=2), binary(50)
    attributes = torch.stack([torch.arange(50).double() * 100, torch.full((50,), 7.0).double()], 1)
    model.initialise(x, attributes)
    told = (attributes - model.condition.mean) / model.condition.deviation
    torch.testing.assert_close(told.mean(0), torch.zeros(2).double())
    torch.testing.assert_close(told.std(0), torch.tensor([1.0, 0.0]).double())  # a constant one is only centred
    assert model.elbo(x, context=attributes).elbo.isfinite().all()
    changed = attributes.clone()
    changed[0, 0] += 50
    before, after = (model.encode(x, context=a).mean.flatten(1) for a in (attributes, changed))
    assert (before != after).any(1).tolist() == [True] + [False] * 49


def test_evaluation_tells_each_image_its_label(conditional):
    model = conditional()
    images = torch.randint(0, 2, (7, *SHAPE), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 2, 1, 0, 1])
    data = ImageDataset(images, 2, split="test", labels=labels)
    found = [evaluate_dataset(model, data, nll_samples=3, batch_size=size) for size in (2, 7)]
    assert found[0].negative_elbo == pytest.approx(found[1].negative_elbo, abs=1e-9)
    assert found[0].nll == pytest.approx(found[1].nll, abs=1e-9)
    shuffled = ImageDataset(images, 2, split="test", labels=labels.flip(0))
    assert evaluate_dataset(model, shuffled).negative_elbo != found[0].negative_elbo


def test_samples_of_a_label_are_the_same_in_any_company(conditional):
    model = conditional()
    one = model.sample(4, generator=torch.Generator().manual_seed(0), context=torch.tensor(2))
    all_of_it = model.sample(4, generator=torch.Generator().manual_seed(0), context=torch.full((4,), 2))
    assert torch.equal(one, all_of_it)
    mixed = prior_samples(model, 5, seed=1, batch_size=2, context=torch.tensor([0, 1, 2, 0, 1]))
    assert mixed.shape == (5, *SHAPE)
    x, labels = torch.ones(2, *SHAPE).double(), torch.tensor([0, 1])
    assert decompressions(model, x, context=labels).shape == model.reconstruct(x, context=labels).shape == x.shape


def test_saved_and_loaded_it_is_the_same(conditional, binary, tmp_path):
    for options in ({"classes": 3}, {"attributes": 2}):
        model, x = conditional(**options), binary(3)
        context = torch.tensor([0, 1, 2]) if "classes" in options else torch.randn(3, 2).double()
        model.initialise(x, context)
        again = vlae.load(model.save_pretrained(tmp_path / next(iter(options))))
        bounds = [m.elbo(x, generator=torch.Generator().manual_seed(0), context=context).elbo for m in (model, again)]
        assert torch.equal(*bounds)


@pytest.mark.parametrize(
    ("options", "context", "word"),
    [
        ({"classes": 3}, None, "conditional"),
        ({"classes": 3}, torch.tensor([0, 1]), "labels"),
        ({"classes": 3}, torch.tensor([0, 1, 3]), "0 to 3"),
        ({"classes": 3}, torch.tensor([0, 1, -1]), "labels"),
        ({"classes": 3}, torch.tensor([0.0, 1.0, 2.0]), "labels"),
        ({"classes": 3}, "three", "labels"),
        ({"attributes": 2}, None, "conditional"),
        ({"attributes": 2}, torch.zeros(3, 3), "attributes"),
        ({"attributes": 2}, torch.full((3, 2), torch.nan), "NaN"),
    ],
)
def test_a_wrong_context_is_refused_with_one_line(conditional, binary, options, context, word):
    model, x = conditional(**options), binary(3)
    for use in (
        lambda: model.elbo(x, context=context),
        lambda: model.log_likelihood(x, 2, context=context),
        lambda: model.reconstruct(x, context=context),
        lambda: model.sample(3, context=context),
        lambda: model.encode(x, context=context),
    ):
        with pytest.raises(VlaeError, match=word) as caught:
            use()
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e300])
def test_attributes_that_are_no_numbers_never_reach_a_model(conditional, binary, bad):
    """Nor its first batch's mean and deviation, which would be NaN in every saved model from then on."""
    model, x = conditional(attributes=2).float(), binary(3).float()
    told = torch.ones(3, 2).double()
    z = model.encode(x, context=told).mean
    told[1, 1] = bad  # 1e300 is infinite in float32
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for use in (
        lambda: model.initialise(x, told),
        lambda: model.decode(z, context=told),
        lambda: model.sample(2, context=told[1]),
        lambda: model.condition.of(None, told, "mine"),
    ):
        with pytest.raises(VlaeError, match="must be finite") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_unconditional_model_refuses_a_context(tiny_vae, tiny_vlae, binary):
    for model in (tiny_vae(), tiny_vlae(), vlae.PixelCNN(SHAPE, decoder_layers=1, channels=4).double()):
        with pytest.raises(VlaeError, match="no context"):
            model.elbo(binary(2), context=torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"classes": 3, "attributes": 2},
        {"classes": -1},
        {"classes": 2.5},
        {"classes": 3, "context_features": 0},
        {"classes": 3, "prior": "vamp"},
    ],
)
def test_impossible_conditions_are_refused_with_one_line(options):
    with pytest.raises(VlaeError) as caught:
        vlae.ConditionalVAE(SHAPE, architecture="mlp", **options)
    assert len(str(caught.value).splitlines()) == 1


def test_data_without_labels_are_refused_by_name():
    with pytest.raises(VlaeError, match=r"labels.*mnist_static"):
        Condition(classes=3).of(None, None, "mnist_static")
    with pytest.raises(VlaeError, match=r"factors.*digits"):
        Condition(attributes=3).of(torch.zeros(2), None, "digits")
    with pytest.raises(VlaeError, match=r"digits.*set classes=10"):
        Condition(classes=3).of(torch.tensor([2, 9]), None, "digits")
    with pytest.raises(VlaeError, match=r"dsprites.*set attributes=5"):
        Condition(attributes=3).of(None, torch.zeros(4, 5), "dsprites")
    assert Condition(classes=3).of(torch.tensor([2]), None, "x").tolist() == [2]


def test_the_plane_is_one_more_channel_in_the_range_of_an_image():
    plane = ContextPlane(4, 3, 5)
    x = torch.rand(2, 3, 3, 5)
    seen = plane(x, torch.randn(2, 4) * 10)
    assert torch.equal(seen[:, :3], x)
    assert seen.shape == (2, 4, 3, 5) and 0 <= seen[:, 3].min() <= seen[:, 3].max() <= 1
    assert (seen[0, 3] != seen[1, 3]).all()


def test_a_textbooks_conditional_vae():
    model = vlae.VAE.from_config({"architecture": "mlp", "input_dim": 64, "latent_dim": 2, "num_classes": 10})
    output = model(torch.zeros(3, 64), context=torch.tensor([1, 2, 3]))
    assert output.reconstruction.shape == (3, 64)
    loss = model.compute_loss(torch.zeros(3, 64), context=torch.tensor([1, 2, 3]))
    torch.testing.assert_close(loss.loss, loss.reconstruction_loss + loss.kl_loss)
    same = vlae.ConditionalVAE.from_config({"architecture": "conv", "in_channels": 3, "num_classes": 4})
    assert same.image_shape == (3, 32, 32) and same.config["classes"] == 4


def test_completion_is_told_the_context_and_takes_any_posterior(tiny_vlae):
    x, mask = torch.zeros(2, *SHAPE).double(), torch.zeros(1, 1, 5, 4, dtype=torch.bool)
    mask[..., :2, :] = True
    model = tiny_vlae(SHAPE, classes=3)
    done = [complete(model, x, mask, candidates=8, context=torch.tensor(labels)) for labels in ([0, 1], [0, 2])]
    evidence = torch.stack([each.log_evidence for each in done])
    assert evidence[0, 1] != evidence[1, 1]
    with pytest.raises(VlaeError, match="conditional"):
        complete(model, x, mask)
    for options in ({"posterior": "iaf"}, {"latent_maps": 2}):
        done = complete(tiny_vlae(SHAPE, **options), x, mask, candidates=4)
        assert torch.equal(done.images[:, :, :2], x[:, :, :2]) and done.log_evidence.isfinite().all()

"""What the page does with a model, against the library's own functions and closed forms."""

import base64

import pytest
import torch

from vlae.codec import compress, decompress
from vlae.errors import VlaeError
from vlae.explorer import Workbench, pictures
from vlae.models.latents import each
from vlae.sampling import decode, dimension_rates, posterior_means
from vlae.sampling.decoding import noise_rows, one_row

SLIDING = ["vlae", "reversed", "maps", "vae", "levels", "mixture", "ladder", "dae", "colour"]


def bench(models, name):
    return Workbench(models[name], name)


def some_image(model, seed=0):
    x = torch.rand(1, *model.image_shape, generator=torch.Generator().manual_seed(seed))
    return pictures.at_levels(x, model)


def told(model):
    condition = model.condition
    return None if condition is None else 3 if condition.classes else [0.5, -1.0]


def pixels(text):
    return torch.tensor(list(base64.b64decode(text)))


@pytest.mark.parametrize("name", [*SLIDING, "vqvae", "labels", "attributes", "pixelcnn"])
def test_codes_come_back_as_they_went(models, name):
    work, model = bench(models, name), models[name]
    context = work.context(told(model))
    z = posterior_means(model, some_image(model), None if context is None else context[None])
    row = work.row_of(z, context)
    assert len(row) == model.latent_size
    torch.testing.assert_close(one_row(work.code(row, context)), one_row(z), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SLIDING)
def test_a_code_is_standard_normal_under_the_prior(models, name):
    """Whatever the prior: rows of draws have mean 0, variance 1 and no correlation."""
    model = models[name]
    z = model.prior().sample((1000,), generator=torch.Generator().manual_seed(0))
    rows = noise_rows(model, z).detach()
    torch.testing.assert_close(rows.mean(0), torch.zeros(rows.shape[1]), rtol=0, atol=0.15)  # 5 standard errors
    torch.testing.assert_close(torch.cov(rows.t()), torch.eye(rows.shape[1]), rtol=0, atol=0.25)


@pytest.mark.parametrize("name", SLIDING)
@pytest.mark.parametrize("drawn", [True, False])
def test_the_image_of_a_code_is_the_models(models, name, drawn):
    work, model = bench(models, name), models[name]
    row = torch.randn(model.latent_size, generator=torch.Generator().manual_seed(4)).tolist()
    image = work.decode(row, drawn, seed=5)["image"]
    assert image == pictures.to_page(decode(model, work.code(row), drawn, 5))[0]
    assert image == work.decode(row, drawn, seed=5)["image"]


def test_a_draw_is_the_image_of_its_code(models):
    for name in ("vlae", "ladder", "vqvae", "pixelcnn", "labels"):
        work, context = bench(models, name), told(models[name])
        answer = work.draw(7, context, pixels_seed=2)
        assert answer["image"] == work.decode(answer["code"], True, 2, context)["image"]
        assert answer == work.draw(7, context, pixels_seed=2)
        assert answer["image"] != work.draw(8, context, pixels_seed=3)["image"]


def test_bits_are_the_closed_form_and_sum_to_the_rate(models):
    model = models["vae"]  # a standard normal prior
    x = some_image(model)
    answer = bench(models, "vae").choose(pictures.to_page(x)[0])
    with torch.no_grad():
        q = model.encode(x)
    kl = 0.5 * (q.mean**2 + (2 * q.log_stddev).exp() - 1) - q.log_stddev
    torch.testing.assert_close(torch.tensor(answer["bits"]), kl[0] / torch.log(torch.tensor(2.0)))
    assert sum(answer["bits"]) * 0.6931471805599453 == pytest.approx(answer["rate"], rel=1e-5)


@pytest.mark.parametrize("name", ["vlae", "maps", "ladder", "vqvae", "labels", "attributes", "pixelcnn", "dae"])
def test_an_image_costs_what_the_bound_says(models, name):
    model, work = models[name], bench(models, name)
    x, context = some_image(model), told(model)
    answer = work.choose(pictures.to_page(x)[0], context)
    batch = None if context is None else torch.tensor([context] * 400)
    generators = [torch.Generator().manual_seed(1000 + k) for k in range(400)]
    with torch.no_grad():
        bound = model.elbo(x.expand(400, -1, -1, -1), generator=generators, context=batch)
    error = 4 * float(bound.elbo.std()) / 4 + 1e-3  # 16 draws
    assert answer["distortion"] + (answer["rate"] or 0) == pytest.approx(-float(bound.elbo.mean()), abs=error)
    assert (answer["rate"] is None) == (name == "dae")
    assert len(answer["bits"]) == (0 if name == "dae" else model.latent_size)


@pytest.mark.parametrize("name", ["vlae", "maps", "vae", "ladder"])
def test_dimensions_come_in_the_order_of_their_rate(models, name):
    model = models[name]
    x = torch.cat([some_image(model, seed) for seed in range(6)])
    answer = bench(models, name).dimensions(x)
    rates = dimension_rates(model, x) / torch.log(torch.tensor(2.0))
    assert answer["bits"] == sorted(answer["bits"], reverse=True)
    torch.testing.assert_close(torch.tensor(answer["bits"]), rates[answer["order"]])
    assert sorted(answer["order"]) == list(range(model.latent_size))


def test_dimensions_without_images_rate_or_code(models):
    drawn = bench(models, "labels").dimensions(None)
    assert sorted(drawn["order"]) == [0, 1, 2]
    assert len(drawn["bits"]) == 3
    assert bench(models, "dae").dimensions(None) == {"order": [0, 1, 2], "bits": []}
    assert bench(models, "pixelcnn").dimensions(None) == {"order": [], "bits": []}
    assert bench(models, "vqvae").dimensions(None) == {"order": [], "bits": []}


@pytest.mark.parametrize("name", ["vlae", "maps", "ladder", "colour"])
@pytest.mark.parametrize("path", ["spherical", "linear"])
def test_a_path_ends_where_its_ends_are(models, name, path):
    work, size = bench(models, name), models[name].latent_size
    first, second = torch.randn(2, size, generator=torch.Generator().manual_seed(6)).tolist()
    images = work.interpolate(first, second, 5, path, False, 3)["images"]
    assert len(images) == 5
    for row, image in ((first, images[0]), (second, images[-1])):
        off = (pixels(work.decode(row, False, 3)["image"]) - pixels(image)).abs()
        assert float((off > 1).float().mean()) < 0.02  # of batches of another size, the last bit may differ


def test_completions_keep_what_is_given(models):
    for name in ("vlae", "levels", "labels", "pixelcnn", "vae", "ladder", "vqvae"):
        model = models[name]
        x = some_image(model)
        answer = bench(models, name).complete(pictures.to_page(x)[0], 3, 4, 6, seed=1, told=told(model))
        assert len(answer["images"]) == 4
        done = torch.cat([pictures.from_page(image, model) for image in answer["images"]])
        assert torch.equal(done[:, :, :3], x[:, :, :3].expand(4, -1, -1, -1))
        assert not torch.equal(done[:, :, 3:], x[:, :, 3:].expand(4, -1, -1, -1))
        assert len(set(answer["images"])) > 1
        assert all(0.999 < k <= 6.001 for k in answer["effective"])
    with pytest.raises(VlaeError, match="probability"):
        bench(models, "dae").complete(pictures.to_page(some_image(models["dae"]))[0], 3, 1, 2, seed=0)


def test_the_file_is_really_written(models):
    for name in ("vlae", "vae", "pixelcnn"):
        model = models[name]
        x = some_image(model)
        answer = bench(models, name).file(pictures.to_page(x)[0])
        data = compress(model, x)
        assert answer["bytes"] == len(data)
        assert answer["why"] is None
        assert torch.equal(decompress(model, data), x)


@pytest.mark.parametrize(
    ("name", "why"),
    [("reversed", "flow_order"), ("labels", "conditional"), ("ladder", "one latent code"), ("colour", "density")],
)
def test_what_can_not_be_coded_says_why(models, name, why):
    model = models[name]
    answer = bench(models, name).file(pictures.to_page(some_image(model))[0], told(model))
    assert answer["bytes"] is None
    assert why in answer["why"]
    assert answer["png"] > 60


def test_panels_say_why_they_are_not_there(models):
    missing = {name: bench(models, name).describe()["missing"] for name in models}
    assert missing["vlae"] == {"latents": None, "interpolation": None, "completion": None}
    assert "no latent code" in missing["pixelcnn"]["latents"]
    assert missing["pixelcnn"]["completion"] is None
    assert "discrete" in missing["vqvae"]["interpolation"]
    assert missing["vae"]["completion"] is None
    assert "no probability" in missing["dae"]["completion"]


def test_the_context_reaches_the_image(models):
    work = bench(models, "attributes")
    one, other = (work.decode([0.0, 0.0, 0.0], False, 0, [value, value])["image"] for value in (9.0, -9.0))
    assert one != other
    work, model = bench(models, "labels"), models["labels"]
    z = work.code([0.5, 0.0, -0.5], torch.tensor(8))
    expected = decode(model, z, False, 0, torch.tensor([8]))
    assert work.decode([0.5, 0.0, -0.5], False, 0, 8)["image"] == pictures.to_page(expected)[0]
    for wrong in (None, 10, -1, [0.5, 0.5]):
        with pytest.raises(VlaeError, match=r"labels|conditional"):
            work.decode([0.0, 0.0, 0.0], True, 0, wrong)
    with pytest.raises(VlaeError, match="no context"):
        bench(models, "vae").decode([0.0, 0.0, 0.0], True, 0, 1)


def test_codes_of_another_size_are_refused(models):
    with pytest.raises(VlaeError, match="3 numbers; got 2"):
        bench(models, "vlae").decode([0.0, 1.0], True, 0)
    with pytest.raises(VlaeError, match="from 0 to 7"):
        bench(models, "vqvae").decode([9] * 16, True, 0)


def test_sliders_end_at_the_quantiles_of_the_prior(models):
    end = bench(models, "vlae").describe()["range"]
    assert end == pytest.approx(2.5758293035489, abs=1e-10)  # of N(0, 1) at 99.5 %


def test_a_model_in_training_mode_is_put_into_eval_mode(models):
    model = models["ladder"].train()
    assert not Workbench(model, "ladder").model.training
    assert each(lambda level: level.shape, posterior_means(model, some_image(model)))[0] == (1, 3)

"""Every model of the family through the whole suite, and what it computes, leaves out and says."""

import copy
import math

import pytest
import torch
from PIL import Image

import vlae
from vlae import VlaeError, models
from vlae.data import ImageDataset, load
from vlae.evaluation import code_groups, evaluate, image_groups, quality, suite
from vlae.evaluation.bound_groups import BoundGroups
from vlae.evaluation.classifier import Classifier
from vlae.evaluation.code_groups import CodeGroups
from vlae.evaluation.image_groups import ImageGroups
from vlae.evaluation.measurements import Settings
from vlae.evaluation.metrics import GROUPS, JUDGED, METRICS, STANDARD, chosen
from vlae.evaluation.pictures import reconstructions, samples
from vlae.evaluation.standard import Unavailable
from vlae.evaluation.suite import measure

SHAPE = (1, 8, 8)
SMALL = {"nll_samples": (2, 5), "nll_images": 7, "information_images": 9, "quality_images": 11, "train_images": 30}


def images(count, split, factors=True):
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 2, (count, *SHAPE), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 3
    classes = torch.stack([torch.arange(count) % 2, torch.arange(count) // 2 % 3], 1) if factors else None
    return ImageDataset(pixels, 2, name="noise", split=split, labels=labels, factors=classes)


def make(kind):
    """A tiny model of that kind in float64, with weights large enough that all of it matters."""
    mlp = {"latent_dim": 3, "architecture": "mlp", "widths": [6]}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = {
            "VAE": lambda: vlae.VAE(SHAPE, **mlp),
            "VLAE": lambda: vlae.VLAE(
                SHAPE,
                latent_dim=3,
                decoder_layers=1,
                channels=4,
                encoder_widths=[4],
                encoder_hidden=8,
                flow_hidden=(8,),
            ),
            "conditional": lambda: vlae.VAE(SHAPE, **mlp, classes=3),
            "LadderVAE": lambda: models.LadderVAE(SHAPE, latent_dims=(3, 2), hidden=5),
            "VQVAE": lambda: models.VQVAE(SHAPE, codes=5, code_dim=3, widths=[4], prior_layers=1, prior_channels=6),
            "DenoisingAutoencoder": lambda: models.DenoisingAutoencoder(SHAPE, **mlp),
            "PixelCNN": lambda: models.PixelCNN(SHAPE, decoder_layers=1, channels=4),
        }[kind]().double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
    return model.eval()


KINDS = ("VAE", "VLAE", "conditional", "LadderVAE", "VQVAE", "DenoisingAutoencoder", "PixelCNN")


@pytest.fixture(scope="module")
def sets():
    return images(20, "test"), images(40, "train")


@pytest.fixture(scope="module")
def judge():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(SHAPE, classes=3).eval()


@pytest.fixture(scope="module")
def found(sets, judge):
    """What was found of each kind, measured once."""
    kept = {}

    def of(kind):
        if kind not in kept:
            kept[kind] = measure(make(kind), *sets, Settings(**SMALL), judge)
        return kept[kind]

    return of


# What does not apply to a kind, by its groups and metrics; all else must be there.
APPLIES_NOT = {
    "VAE": {"perplexity", "codes_in_use"},
    "VLAE": {"perplexity", "codes_in_use"},
    "conditional": {"perplexity", "codes_in_use"},
    "LadderVAE": {"perplexity", "codes_in_use"},
    "VQVAE": {"active_units"},
    "DenoisingAutoencoder": {
        *("perplexity", "codes_in_use", "rate", "rate_bits", "negative_elbo", "bits_per_dim", "nll", "information"),
    },
    "PixelCNN": {
        *("perplexity", "codes_in_use", "active_units", "shuffled_gap", "information", "reconstruction", "probes"),
        *("disentanglement", *(name for name in METRICS if name.startswith("sample_"))),
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_applies_is_there_and_nothing_else(kind, found):
    expected = {
        name
        for name, metric in METRICS.items()
        if not {name, metric.group} & APPLIES_NOT[kind] and name not in STANDARD
    }
    result = found(kind)
    assert set(result.values) == expected
    assert all(math.isfinite(value) for value in result.values.values())
    assert set(result.errors) <= expected
    assert result.model == ("VAE" if kind == "conditional" else kind)
    groups = {METRICS[name].group for name in METRICS} - {METRICS[name].group for name in expected}
    assert groups <= set(result.skipped), "a group without a number says why"
    assert all("\n" not in reason and len(reason) > 10 for reason in result.skipped.values())


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_do_not_depend_on_the_batch_size(kind, found, sets, judge):
    first = found(kind)
    for size in (1, 6):
        other = measure(make(kind).train(), *sets, Settings(**SMALL, batch_size=size), judge)
        for part in ("values", "errors"):
            expected, again = getattr(first, part), getattr(other, part)
            assert again.keys() == expected.keys()
            for name, value in expected.items():
                assert again[name] == pytest.approx(value, abs=1e-9, rel=0), name
        for name, images in first.pictures.items():
            assert torch.equal(images, other.pictures[name])


def test_numbers_are_those_of_the_parts(found, sets, judge):
    test, train = sets
    result, model = found("VLAE"), make("VLAE")
    bound = evaluate(model, lambda: [(test.tensor().double(), range(20))], [2, 5], 7)
    x = test.subset(11).tensor()
    decoded, drawn = reconstructions(model, x.double())
    greedy, sampled = samples(model, 11)
    expected = {
        "distortion": bound.distortion,
        "rate": bound.rate,
        "negative_elbo": bound.negative_elbo,
        "shuffled_gap": bound.shuffled_gap,
        "nll": bound.nll,
        "ess": bound.ess,
        "mse": quality.mse(x, decoded).mean().item(),
        "drawn_ssim": quality.ssim(x, drawn).mean().item(),
        "data_sharpness": quality.sharpness(x).mean().item(),
        "sample_sharpness": quality.sharpness(greedy).mean().item(),
        "drawn_sample_confidence": judge.log_probabilities(sampled).double().amax(1).exp().mean().item(),
        "data_confidence": judge.log_probabilities(train.subset(11).tensor()).double().amax(1).exp().mean().item(),
    }
    assert {name: result.values[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert result.errors["nll"] == pytest.approx(bound.nll_error)
    assert [row["samples"] for row in result.series["nll_by_samples"]] == [2, 5]
    assert sum(result.series["bits_per_latent"]) == pytest.approx(result.values["rate_bits"])
    kept, own = result.evaluation.to_dict(), bound.to_dict()
    assert kept.pop("nll_by_samples")[-1] == pytest.approx(own.pop("nll_by_samples")[-1])
    assert kept.keys() == own.keys()
    for name, value in own.items():
        assert kept[name] == (value if value is None else pytest.approx(value)), name
    assert sum(found("LadderVAE").series["rate_per_level"]) == pytest.approx(found("LadderVAE").values["rate"])


def test_requested_numbers_are_the_used_ones(found):
    result = found("VLAE")
    used = {"bound": 20, "nll": 7, "information": 9, "reconstruction": 11, "samples": 11, "probes": 20}
    assert result.images == {**used, "disentanglement": 20}
    assert result.values["information_ceiling"] == pytest.approx(math.log(9))
    assert {name: len(images) for name, images in result.pictures.items()} == dict.fromkeys(result.pictures, 11)
    notes = " ".join(result.notes)
    for words in (
        "7 images, a fixed random choice",
        "among 9 images",
        "first 11 images",
        "30 training images, tested on 20",
    ):
        assert words in notes


def test_as_many_samples_as_asked_for_though_there_are_fewer_images(sets, judge):
    test, train = sets
    result = measure(make("VAE"), test.subset(5), train, Settings(only=("samples",), quality_images=13), judge)
    assert len(result.pictures["samples"]) == len(result.pictures["drawn samples"]) == 13
    assert "5 test images and 13 samples" in " ".join(result.notes)


@pytest.mark.parametrize(
    "only", [("nll",), ("mig",), ("bound",), ("distortion", "linear_probe"), ("drawn_sample_sharpness",), ("mse",)]
)
def test_only_what_is_asked_for_is_computed_and_returned(only, sets, judge, monkeypatch):
    ran = []
    for group in GROUPS:
        owner = next(kind for kind in (BoundGroups, CodeGroups, ImageGroups) if hasattr(kind, group))
        method = getattr(owner, group)
        monkeypatch.setattr(owner, group, lambda self, method=method, group=group: (ran.append(group), method(self)))
    result = measure(make("VAE"), *sets, Settings(only=only, **SMALL), judge)
    assert set(result.values) == set(chosen(only)) - {"perplexity", "codes_in_use", "nll_of_all"}
    assert set(ran) == {METRICS[name].group for name in chosen(only)} == set(result.seconds)
    assert not result.skipped


def test_what_is_needed_follows_from_what_is_asked_for():
    every = Settings()
    assert every.needs_judge and every.needs_training_images
    for only, judge, training in [
        (("bound", "nll"), False, False),
        (("sample_sharpness",), False, False),
        (("sample_frechet",), True, False),
        (("samples",), True, True),
        (("knn",), False, True),
    ]:
        settings = Settings(only=only)
        assert (settings.needs_judge, settings.needs_training_images) == (judge, training), only
    assert not any(name.endswith("sharpness") for name in JUDGED)


def test_standard_networks_are_left_to_those_who_ask(sets, judge, monkeypatch):
    def missing():
        raise Unavailable("weights.pth is not here: put it in some/where")

    monkeypatch.setattr(image_groups, "load_inception", missing)
    monkeypatch.setattr(image_groups, "load_lpips", missing)
    assert {"fid", "inception_score", "lpips", "drawn_lpips"} == STANDARD
    assert "--standard" in measure(make("VAE"), *sets, Settings(**SMALL), judge).skipped["standard"]
    for settings in (Settings(standard=True, **SMALL), Settings(only=("standard", "lpips"), **SMALL)):
        result = measure(make("VAE"), *sets, settings, judge)
        assert not STANDARD & result.values.keys()
        assert "weights.pth is not here" in result.skipped["standard"]
        assert "weights.pth is not here" in result.skipped["lpips"]


def test_standard_networks_say_what_they_are_asked(sets, judge, monkeypatch):
    seen = {}

    def inception(network, data, made):
        seen["inception"] = (network, len(data), made)
        return {"fid": 1.5, "inception_score": 2.5}

    monkeypatch.setattr(image_groups, "load_inception", lambda: "inception")
    monkeypatch.setattr(image_groups, "load_lpips", lambda: "alexnet")
    monkeypatch.setattr(image_groups, "standard_sample_quality", inception)
    monkeypatch.setattr(image_groups, "perceptual_distance", lambda network, x, y: (x - y).abs().flatten(1).mean(1))
    result = measure(make("VLAE"), *sets, Settings(standard=True, **SMALL), judge)
    assert (result.values["fid"], result.values["inception_score"]) == (1.5, 2.5)
    assert seen["inception"][:2] == ("inception", 11)
    assert torch.equal(seen["inception"][2], result.pictures["drawn samples"])  # what an autoregressive decoder draws
    assert result.values["lpips"] == pytest.approx(result.values["l1"], abs=1e-6)
    assert result.values["drawn_lpips"] == pytest.approx(result.values["drawn_l1"], abs=1e-6)
    assert "standard" not in result.skipped


def test_reasons_are_plain(found, sets, judge):
    test, train = sets
    assert "no density of z" in found("DenoisingAutoencoder").skipped["nll"]
    assert "has no code" in found("PixelCNN").skipped["reconstruction"]
    assert "exact" in " ".join(found("PixelCNN").notes)
    bare = measure(make("VAE"), images(6, "test", factors=False), None, Settings(**SMALL))
    assert "no classifier" in bare.skipped["samples"]
    assert "no training images" in bare.skipped["probes"]
    assert bare.skipped["disentanglement"] == "noise has no known factors"
    assert "sample_sharpness" in bare.values and "sample_confident" not in bare.values
    learned = measure(make("VAE"), train, train, Settings(only=("probes",), **SMALL))
    assert not learned.values and "train split" in learned.skipped["probes"]
    floating = ImageDataset(test.images, 2, name="noise", split="test", factors=torch.rand(20, 2))
    assert "whole numbers" in measure(make("VAE"), floating, None, Settings(only=("mig",))).skipped["disentanglement"]
    monotonous = ImageDataset(test.images, 2, name="noise", split="test", factors=torch.zeros(20, 2).long())
    refused = measure(make("VAE"), monotonous, None, Settings(only=("mig",), **SMALL))
    assert refused.skipped.keys() == {"disentanglement"} and not refused.values  # in the measure's own words


def test_a_long_code_is_left_out_of_disentanglement(sets, monkeypatch):
    monkeypatch.setattr(code_groups, "MOST_DIMENSIONS", 2)
    assert "too long" in measure(make("VAE"), *sets, Settings(only=("sap",))).skipped["disentanglement"]


def test_numbers_that_are_not_finite_are_said_and_left_out(sets, judge):
    model = make("VAE")
    with torch.no_grad():
        next(model.decoder.parameters()).fill_(math.nan)
    result = measure(model, *sets, Settings(only=("bound", "knn"), **SMALL), judge)
    assert "distortion" not in result.values and "not finite" in result.skipped["distortion"]
    assert "knn" in result.values  # of the encoder alone
    assert all(math.isfinite(value) for value in (*result.values.values(), *result.errors.values()))


def test_no_importance_samples_leave_the_nll_out(sets):
    result = measure(make("VAE"), *sets, Settings(only=("bound", "nll"), nll_samples=()))
    assert "nll" not in result.values and "distortion" in result.values


def test_progress_ends_where_it_should(sets, judge):
    last, stages = {}, []
    measure(
        make("VLAE"),
        *sets,
        Settings(**SMALL),
        judge,
        lambda stage, *at: (stages.append(stage), last.update({stage: at})),
    )
    assert all(done == total > 0 for done, total in last.values())
    assert last["nll"] == (7, 7) and last["samples"] == (11, 11)
    assert set(stages) == set(GROUPS) - {"standard"}


def test_other_images_are_refused(sets):
    with pytest.raises(VlaeError, match=r"1x5x4 images and those of noise are 1x8x8: choose a data set of such images"):
        measure(vlae.VAE((1, 5, 4), latent_dim=2, architecture="mlp"), *sets)
    grey = ImageDataset(torch.zeros(3, *SHAPE, dtype=torch.uint8), 17, split="test")
    with pytest.raises(VlaeError, match="2 levels"):
        measure(make("VAE"), grey)
    unlabelled = ImageDataset(sets[0].images, 2, split="test")
    with pytest.raises(VlaeError, match="label"):
        measure(make("conditional"), unlabelled)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"only": ("mgi",)}, "did you mean 'mig'"),
        ({"only": ("nonsense",)}, "groups are bound"),
        ({"quality_images": 1}, "quality_images must be at least 2"),
        ({"batch_size": 0}, "must be positive"),
        ({"nll_images": 0}, "must be positive"),
        ({"nll_samples": (1, -2)}, "nll_samples must be positive"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, said):
    with pytest.raises(VlaeError, match=said):
        Settings(**options)


def test_faint_copies_in_idle_dimensions_do_not_count(monkeypatch):
    """Dimensions at the prior have means that hardly move; what they say of a factor can't be read from z."""
    from vlae.data.factors import grid

    v = grid([3, 4]).repeat(10, 1)
    test = ImageDataset(images(120, "test").images, 2, name="noise", split="test", factors=v)
    monkeypatch.setattr(code_groups, "code_means", lambda *_: torch.cat([v, 1e-3 * v], 1).double())
    result = measure(make("VAE"), test, None, Settings(only=("disentanglement",), **SMALL))
    assert result.values["mig"] == 1.0 and result.values["dci_completeness"] == pytest.approx(1)
    assert any("2 of their dimensions varying" in note for note in result.notes)


def test_images_that_training_draws_anew_are_drawn_once(judge):
    data = ImageDataset.from_any(torch.rand(40, 1, 8, 8), split="train", binarize="dynamic")
    torch.manual_seed(0)
    model = vlae.VAE((1, 8, 8), latent_dim=2, architecture="mlp", widths=[6]).double()
    values = [
        measure(model, data, settings=Settings(only=("bound",), batch_size=size)).values["distortion"]
        for size in (7, 40)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-10)


@pytest.mark.parametrize("shape", [(1, 1, 9), (1, 2, 8)])
def test_images_without_an_inside_keep_what_does_not_need_one(shape):
    data = ImageDataset.from_any(torch.rand(20, *shape), split="test")
    model = vlae.VAE(shape, latent_dim=2, architecture="mlp", widths=[6], likelihood="gaussian")
    result = measure(model, data, None, Settings(only=("reconstruction", "samples"), quality_images=5))
    assert {"mse", "l1", "psnr", "drawn_mse"} <= set(result.values)
    assert not any("ssim" in name or "sharpness" in name for name in result.values)
    assert "less than 3 high" in result.skipped["ssim"]


def test_one_image_tells_nothing_of_others(capsys):
    from vlae.evaluation.report import show

    data = images(1, "test")
    result = measure(make("VLAE"), data, None, Settings(only=("bound", "nll"), nll_samples=(2, 3), nll_images=1))
    assert {"negative_elbo", "nll"} <= set(result.values) and not {"shuffled_gap", "active_units"} & set(result.values)
    assert not result.errors
    assert result.skipped["shuffled_gap"] == result.skipped["active_units"] == "it takes two images or more"
    show(result)
    assert "±" not in capsys.readouterr().out.replace("± is one standard error", "")
    few = measure(make("VLAE"), images(9, "test"), None, Settings(only=("bound", "nll"), nll_images=1))
    assert "negative_elbo" in few.errors and "nll" not in few.errors


class Scaled(vlae.VAE):
    """The same model of the same images, whose z is measured in another unit."""

    unit = 0.02

    def encode(self, x, context=None):
        q = super().encode(x)
        return type(q)(q.mean * self.unit, q.log_stddev + math.log(self.unit))

    def decode(self, z, temperature=1.0, context=None):
        return super().decode(z / self.unit, temperature)

    def prior(self, context=None):
        return ScaledPrior(super().prior(), self.unit)


class ScaledPrior:
    def __init__(self, prior, unit):
        self.prior, self.unit = prior, unit

    def log_prob(self, z):
        return self.prior.log_prob(z / self.unit) - math.prod(z.shape[1:]) * math.log(self.unit)

    def noise_of(self, z):
        return self.prior.noise_of(z / self.unit)


def test_disentanglement_has_no_scale():
    """The numbers of a learned prior, whose dimensions are of any size, are those of the same model in another unit."""
    options = {"latent_dim": 3, "architecture": "mlp", "widths": [6], "flow_steps": 1, "flow_hidden": (4,)}
    model = vlae.VAE(SHAPE, **options).double().eval()
    other = copy.deepcopy(model)
    other.__class__ = Scaled
    settings = Settings(only=("disentanglement",))
    here, there = (measure(each, images(90, "test"), None, settings) for each in (model, other))
    assert {"mig", "sap", "dci_completeness"} <= set(here.values)
    assert there.values == pytest.approx(here.values, abs=1e-6)
    assert here.notes == there.notes


def test_probes_need_images_of_their_own(sets, judge):
    test, train = sets
    test = copy.copy(test)
    test.options = {"whole": True}
    result = measure(make("VAE"), test, train, Settings(**SMALL, only=("probes",)), judge)
    assert result.skipped == {"probes": "whole=True gives all images in every split: none are left to test on"}
    assert not result.values


def test_a_probe_that_has_no_classes_to_learn_says_so(sets):
    test, train = sets
    for labels, reason in (
        (torch.zeros(len(train), dtype=torch.long), "the images to learn from are all of one class: take more of them"),
        (torch.arange(len(train)) % 2, "the test images have classes that the others have not"),
    ):
        others = ImageDataset(train.images, 2, name="noise", split="train", labels=labels, factors=train.factors)
        result = measure(make("VAE"), test, others, Settings(**SMALL, only=("probes",)))
        assert result.skipped == {"linear_probe": reason, "knn": reason}
        assert "factor_r2" in result.values  # factors need no classes


def test_what_is_asked_for_by_name_is_there_or_a_reason_is(sets):
    test = images(6, "test", factors=False)
    result = measure(make("VAE"), test, images(9, "train", factors=False), Settings(**SMALL, only=("factor_r2", "knn")))
    assert set(result.values) == {"knn"}
    assert result.skipped == {"factor_r2": "it is none of this model's, or of these images"}


def test_images_of_the_same_origin_were_trained_on(tmp_path):
    model, test, train = make("VAE"), images(6, "test"), images(6, "train")

    def told(dataset, **options):
        dataset = copy.copy(dataset)
        dataset.options = options
        return suite.were_trained_on(model, dataset)

    model.metadata["data"] = {"name": "noise", "split": "train"}
    assert told(train) and not told(test)
    assert told(test, whole=True)  # all images, those of training among them
    model.metadata["data"]["options"] = {"path": str(tmp_path)}  # folders are all of one name
    assert told(train, path=f"{tmp_path}/.") and not told(test, path=str(tmp_path))
    assert not told(train, path=str(tmp_path / "other"))


def test_a_folder_is_known_again_by_where_it_is(tmp_path, monkeypatch):
    """Not by what it is called: that may be a number, begin at home, or lie under a root."""
    for place in ("one/2024", "two/2024"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (4, 4), number).save(tmp_path / place / f"{number}.png")
    model = make("VAE")
    model.metadata["data"] = {
        "name": "folder",
        "split": "train",
        "root": str(tmp_path / "one"),
        "options": {"path": 2024},
    }

    def images_at(path, root=None):
        return load("folder", "train", root=root, path=path, size=4, mode="L")

    assert suite.were_trained_on(model, images_at(2024, tmp_path / "one"))
    assert suite.were_trained_on(model, images_at(str(tmp_path / "one" / "2024")))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert suite.were_trained_on(model, images_at("~/one/2024"))
    assert not suite.were_trained_on(model, images_at(2024, tmp_path / "two"))
    model.metadata["data"]["root"] = str(tmp_path / "gone")
    assert not suite.were_trained_on(model, images_at(2024, tmp_path / "two"))


def test_json_has_one_nll_of_all(sets):
    test, _ = sets
    for options in ({"nll_images": 3}, {"nll_images": 3, "nll_of_all_samples": 2}, {"nll_images": None}):
        result = measure(make("VAE"), test, None, Settings(**{**SMALL, **options}, only=("bound", "nll")))
        assert result.evaluation.nll_of_all == result.values["nll_of_all"]
        assert result.evaluation.nll_of_all_error == result.errors.get("nll_of_all")


def test_a_model_without_a_code_has_no_numbers_of_one(sets):
    bound = evaluate(make("PixelCNN"), lambda: [(sets[0].tensor().double(), range(len(sets[0])))])
    assert math.isnan(bound.shuffled_gap) and bound.active_units is None

"""`vlae sample interpolate | arithmetic | complete` and `vlae viz traverse | decompressions`, from end to end."""

import numpy as np
import pytest
import torch
from PIL import Image

import vlae
from vlae import figures
from vlae.cli import main

SHAPE = (1, 8, 8)
SMALL = {"decoder_layers": 0, "channels": 4}
VAE = {"latent_dim": 3, "architecture": "mlp", "widths": [6], "flow_hidden": (8,)}
VLAE = {**SMALL, "latent_dim": 3, "encoder_widths": [4], "encoder_hidden": 8, "flow_hidden": (8,)}
MODELS = {
    "vlae": lambda: vlae.VLAE(SHAPE, **VLAE),
    "vae": lambda: vlae.VAE(SHAPE, **VAE),
    "labels": lambda: vlae.ConditionalVAE(SHAPE, classes=10, **VAE),
    "ladder": lambda: vlae.LadderVAE(SHAPE, latent_dims=(4, 2), widths=[6], hidden=8),
    "codes": lambda: vlae.VQVAE(SHAPE, codes=5, code_dim=2, widths=[4], prior_layers=1),
    "pixels": lambda: vlae.PixelCNN(SHAPE, **SMALL),
    "dae": lambda: vlae.DenoisingAutoencoder(SHAPE, latent_dim=3, architecture="mlp", widths=[6]),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with one small saved model of each kind."""
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, make in MODELS.items():
            model = make()
            model.metadata = {"data": {"name": "digits", "binarize": "threshold"}}
            model.save_pretrained(folder / name)
    return folder


@pytest.fixture
def here(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in MODELS:
        (tmp_path / name).symlink_to(saved / name)
    Image.fromarray(np.pad(np.full((3, 8), 255, np.uint8), ((0, 5), (0, 0)))).save("mask.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save("small.png")
    (tmp_path / "text.png").write_text("no picture")
    whole = (tmp_path / "mask.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: whole.index(b"IDAT") + 8])
    (tmp_path / "broken.png").write_bytes(whole[: whole.index(b"IDAT")] + bytes(9))
    Image.fromarray(np.full((8, 8), 300, np.uint16)).save("deep.png")
    Image.new("RGBA", (8, 8), (255, 255, 255, 0)).save("clear.png")
    Image.new("L", (8, 8), 255).save("key.png", transparency=255)
    return tmp_path


@pytest.fixture
def drawn(monkeypatch):
    """What the commands give to the functions that draw, by the functions' names."""
    seen = {}

    def spy(name, function):
        def wrapped(*arguments, **named):
            seen[name] = (*arguments, *named.values())
            return function(*arguments, **named)

        monkeypatch.setattr(figures, name, wrapped)

    for name in ("interpolations", "traversals", "latent_arithmetic", "completions", "decompressions"):
        spy(name, getattr(figures, name))
    return seen


def run(words, output="out.png"):
    assert main([*words.split(), "--output", output]) == 0


def held_out():
    return vlae.data.load("digits", split="test", binarize="threshold")


def test_interpolation_has_the_decoded_codes_at_its_ends_and_the_originals_beside(here, drawn, capsys):
    run("sample interpolate --model vae --images 4 9 2 7 --steps 3 --path both")
    assert "4 paths of 3 steps: out.png" in capsys.readouterr().out
    paths, rows, (first, second), *_ = drawn["interpolations"]
    assert rows == ["4 → 9\nlinear", "4 → 9\nspherical", "2 → 7\nlinear", "2 → 7\nspherical"]
    x = held_out().tensor()
    assert torch.equal(first, x[[4, 4, 2, 2]]) and torch.equal(second, x[[9, 9, 7, 7]])
    model = vlae.load(here / "vae")
    torch.testing.assert_close(paths[:, 0], model.reconstruct(first))
    torch.testing.assert_close(paths[:, -1], model.reconstruct(second))
    middle = model.decode((model.encode(first[:1]).mean + model.encode(second[:1]).mean) / 2).mean
    torch.testing.assert_close(paths[0, 1], middle[0])


def test_default_places_are_in_the_run_of_the_model(here):
    for words, path in {
        "sample interpolate --pairs 1 --steps 2": "grids/interpolations.png",
        "sample arithmetic --base 0 --plus 1 --minus 2": "grids/arithmetic.png",
        "sample.complete --count 1 --candidates 2 --images 0": "samples/completions.png",
        "viz.traverse --dim 2 --quantiles 0.5": "grids/traverse_dim_2.png",
        "viz traverse --count 2 --quantiles 0.1 0.9": "grids/traverse.png",
        "viz decompressions --count 2 --draws 2": "grids/decompressions.png",
    }.items():
        (here / "run").mkdir(exist_ok=True)
        if not (here / "run/model").exists():
            (here / "run/model").symlink_to(here / "vlae")
        assert main([*words.split(), "--model", "run/model"]) == 0
        assert (here / "run" / path).read_bytes().startswith(b"\x89PNG")
    assert np.load(here / "run/samples/completions.npz")["images"].shape == (1, 1, 8, 8)


def test_a_conditional_model_goes_from_one_image_to_another_of_its_label(here, drawn, capsys):
    run("sample interpolate --model labels --pairs 3 --steps 2")
    _, rows, (first, second), *_ = drawn["interpolations"]
    data = held_out()
    for pair, name in enumerate(rows):
        numbers = [int(number) for number in name.split(" → ")]
        assert data.labels[numbers].tolist() == [pair, pair]
        assert torch.equal(torch.stack([first[pair], second[pair]]), data.tensor()[numbers])
    run("sample interpolate --model labels --pairs 2 --label 7 --steps 2")
    numbers = [int(number) for name in drawn["interpolations"][1] for number in name.split(" → ")]
    assert data.labels[numbers].tolist() == [7] * 4 and len(set(numbers)) == 4
    run("sample interpolate --model labels --prior --label 7 --pairs 2 --steps 2")
    assert drawn["interpolations"][2] is None
    one_label = [int(row) for row in (data.labels == 3).nonzero()[:2, 0]]
    other = int((data.labels == 4).nonzero()[0, 0])
    assert main(f"sample interpolate --model labels --images {one_label[0]} {other}".split()) == 2
    assert "choose images of one label" in capsys.readouterr().err


def test_traversal_shows_the_quantiles_and_the_rate(here, drawn):
    run("viz traverse --model vae --dims 1 --image 5 6 --quantiles 0.1 0.5 --space latent")
    images, rows, columns, starts, title = drawn["traversals"]
    assert rows == ["image 5", "image 6"] and columns == ["0.1", "0.5"] and "bits" in title and "z 1," in title
    model, x = vlae.load(here / "vae"), held_out().tensor()[[5, 6]]
    z = model.encode(x).mean.detach()
    torch.testing.assert_close(starts["code"], model.decode(z).mean)
    z[:, 1] = -1.2815515655446004  # the standard normal's 10% point
    torch.testing.assert_close(images[:, 0], model.decode(z).mean)
    z[:, 1] = 0
    torch.testing.assert_close(images[:, 1], model.decode(z).mean)


def test_traversal_without_dimensions_takes_the_most_informative_ones(here, drawn):
    from vlae.sampling import informative_dimensions

    run("viz traverse --model vlae --count 2 --quantiles 0.5")
    x = held_out().tensor()[:500]
    dimensions = informative_dimensions(vlae.load(here / "vlae"), x, 2)
    _, rows, *_ = drawn["traversals"]
    assert [row.split("\n")[0] for row in rows] == [f"ε {dimension}" for dimension in dimensions]
    assert all(row.endswith(" bits") for row in rows)


def test_arithmetic_by_number_and_by_label(here, drawn, capsys):
    run("sample arithmetic --model vae --base 0 1 --plus_label 7 --minus 4 --label_images 5")
    assert "base (2 images) + plus (5) - minus (1)" in capsys.readouterr().out
    decoded, originals, _ = drawn["latent_arithmetic"]
    data, model = held_out(), vlae.load(here / "vae")
    x = data.tensor()
    sets = [x[:2], x[data.labels == 7][:5], x[4:5]]
    assert all(torch.equal(a, b) for a, b in zip(originals.values(), sets, strict=True))
    codes = [model.encode(images).mean.mean(0, keepdim=True) for images in sets]
    for name, z in zip(decoded, [*codes, codes[0] + codes[1] - codes[2]], strict=True):
        torch.testing.assert_close(decoded[name], model.decode(z).mean)
    assert list(decoded) == ["base\n0 1", "+ plus\nlabel 7", "− minus\n4", "= result"]
    run("sample arithmetic --model vlae --base 0 --plus 1 --minus 2 --draws 3")
    assert {len(images) for images in drawn["latent_arithmetic"][0].values()} == {3}
    run("sample arithmetic --model labels --base 0 --plus 1 --minus 2")


@pytest.mark.parametrize(
    ("given", "region"),
    [
        ("--given upper", np.s_[:4]),
        ("--given lower", np.s_[4:]),
        ("--given left", np.s_[:, :4]),
        ("--given right", np.s_[:, 4:]),
        ("--given 0.25", np.s_[:2]),
        ("--mask mask.png", np.s_[:3]),
    ],
)
def test_completions_keep_what_is_given(here, drawn, capsys, given, region):
    run(f"sample complete --model vlae --images 3 8 --count 2 --candidates 3 --rounds 1 {given}")
    originals, mask, completed, rows, _ = drawn["completions"]
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[region] = True
    assert torch.equal(mask.expand(1, 1, 8, 8)[0, 0], expected)
    assert torch.equal(originals, held_out().tensor()[[3, 8]])
    assert torch.equal(completed[..., expected], originals[:, None, ..., expected].expand(-1, 2, -1, -1))
    assert not torch.equal(completed[:, 0], completed[:, 1])
    assert [row.split("\n")[0] for row in rows] == ["image 3", "image 8"]
    said = capsys.readouterr().out
    assert "image 8: " in said and "effective candidates of 3" in said
    assert np.array_equal(np.load(here / "out.npz")["images"], (completed.flatten(0, 1) * 255).byte().numpy())


def test_an_image_is_completed_alike_whatever_others_are_asked_for(here, drawn):
    run("sample complete --model vlae --images 3 8 --count 2 --candidates 3")
    both = drawn["completions"][2]
    run("sample complete --model vlae --images 8 --count 2 --candidates 3")
    assert torch.equal(drawn["completions"][2][0], both[1])


def test_decompressions_are_drawn_anew_or_means_of_drawn_codes(here, drawn):
    run("viz decompressions --model vlae --count 3 --draws 2")
    originals, draws, said = drawn["decompressions"]
    assert torch.equal(originals, held_out().tensor()[:3]) and draws.shape == (3, 2, 1, 8, 8)
    assert not torch.equal(draws[:, 0], draws[:, 1]) and said.startswith("x ~ p(x|z)")
    run("viz decompressions --model vae --count 2 --draws 2")
    _, draws, said = drawn["decompressions"]
    assert said.startswith("mean images") and not set(draws.unique().tolist()) <= {0.0, 1.0}
    assert not torch.equal(draws[:, 0], draws[:, 1])


@pytest.mark.parametrize(
    "words",
    [
        "sample interpolate --model ladder --pairs 1 --steps 3",
        "sample interpolate --model ladder --pairs 1 --steps 3 --prior",
        "sample arithmetic --model ladder --base 0 --plus 1 --minus 2",
        "viz traverse --model ladder --count 6 --quantiles 0.1 0.9",
        "viz traverse --model labels --count 2 --quantiles 0.1 0.9",
        "viz traverse --model dae --dims 0 --quantiles 0.1 0.9",
        "viz decompressions --model ladder --count 2 --draws 2",
        "viz decompressions --model labels --count 2 --draws 2",
        "sample interpolate --model dae --pairs 1 --steps 3",
        "sample complete --model pixels --images 1 --count 2 --candidates 2",
        "viz traverse --model vlae --dims 0 --greedy --quantiles 0.5",
    ],
)
def test_every_kind_of_model_that_can(here, words):
    run(words)
    assert (here / "out.png").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sample interpolate --model vae --steps 1", "2 steps or more"),
        ("sample interpolate --model vae --pairs 0", "pairs must be"),
        (
            "sample interpolate --model vae --path curved",
            "--path must be 'linear', 'spherical' or 'both'; got 'curved'",
        ),
        ("sample interpolate --model vae --images 1 2 3", "two numbers for each pair"),
        ("sample interpolate --model vae --images 0 300", "no image 300: digits test has images 0 to 299"),
        ("sample interpolate --model vae --images 0 -1", "no image -1"),
        ("sample interpolate --model vae --images 0 1 --prior", "not both"),
        ("sample interpolate --model vae --images 0 1 --label 3", "a label chooses the images"),
        ("sample interpolate --model vae --label 12", "no image of label 12"),
        ("sample interpolate --model labels --label 3 --pairs 100", "too few images of label 3"),
        ("sample interpolate --model vae --prior --label 1", "not conditional"),
        ("sample interpolate --model codes", "discrete codes"),
        ("sample interpolate --model pixels", "has no z"),
        ("sample arithmetic --model vae --base 0 --plus 1", "give --minus or --minus_label"),
        ("sample arithmetic --model vae --base 0 --base_label 1 --plus 1 --minus 2", "one of the two"),
        ("sample arithmetic --model vae --base 0 --plus 1 --minus 2 --draws 0", "draws must be 1 or more"),
        ("sample arithmetic --model vae --base 0 --plus 1 --minus 2 --label_images 5", "chosen by a label"),
        ("sample arithmetic --model codes --base 0 --plus 1 --minus 2", "discrete codes"),
        ("sample complete --model vlae --given top", "upper, lower, left or right"),
        ("sample complete --model vlae --given 1.5", "upper, lower, left or right"),
        ("sample complete --model vlae --mask text.png", "text.png: not a readable mask"),
        ("sample complete --model vlae --mask cut.png", "cut.png: not a readable mask"),
        ("sample complete --model vlae --mask broken.png", "broken.png: not a readable mask"),
        ("sample complete --model vlae --mask deep.png", "deep.png: pixels of more than 8 bits"),
        ("sample complete --model vlae --mask clear.png", "clear.png: has transparent pixels"),
        ("sample complete --model vlae --mask key.png", "key.png: has transparent pixels"),
        ("sample complete --model vlae --mask small.png", "4x4 pixels and the images have 8x8"),
        ("sample complete --model vlae --mask nothing.png", "no file nothing.png"),
        ("sample complete --model vlae --candidates 0", "candidates"),
        ("viz traverse --model vae --dims 3", "dimensions 0 to 2; got 3"),
        ("viz traverse --model vae --quantiles 0 0.5", "between 0 and 1"),
        ("viz traverse --model vae --space w", "'latent' or 'noise'"),
        ("viz traverse --model vae --image 1 2", "give one --image"),
        ("viz traverse --model vae --dims 0 1 --output x.png", "leave it out"),
        ("viz traverse --model codes", "discrete codes"),
        ("viz traverse --model dae", "no rate to choose dimensions by"),
        ("viz traverse --model pixels", "has no z"),
        ("viz decompressions --model codes", "viz recon-grid"),
        ("viz decompressions --model pixels", "vlae sample prior"),
        ("viz decompressions --model vae --draws 0", "draws must be 1 or more"),
        ("viz decompressions --model vae --count 0", "count must be 1 or more"),
        ("sample interpolate --model vae --images 0 1 --pairs 3", "--pairs or --images"),
        ("sample complete --model vlae --given left --mask small.png", "--given or --mask"),
        ("sample prior --model pixels --temperature 0.5", "--pixel_temperature"),
        ("viz traverse --model vae --dims 0 --count 3", "--count or dimensions"),
        ("viz traverse --model vae --dim 0 --count 3", "--count or dimensions"),
        ("sample complete --model vlae --images []", "one image or more"),
        ("sample interpolate --model vae --prior --data.split validation", "leave out --data.split"),
        (
            "sample interpolate --model vae --prior --data.split=test --data.limit 3",
            "leave out --data.split and --data.limit",
        ),
        ("sample interpolate --model vae --greedy", "factorised decoder"),
        ("sample arithmetic --model vae --base 0 --plus 1 --minus 2 --greedy", "leave out --greedy"),
        ("sample arithmetic --model vae --base 0 --plus 1 --minus 2 --draws 4", "leave out --draws"),
        ("sample arithmetic --model vlae --base 0 --plus 1 --minus 2 --draws 4 --greedy", "--draws or --greedy"),
        ("viz traverse --model vae --greedy", "leave out --greedy"),
    ],
)
def test_what_can_not_be_done_is_one_line(here, capsys, words, said):
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("vlae: error: ") and error.count("\n") == 1 and said in error, error


COMMANDS = [
    "sample prior",
    "sample interpolate",
    "sample arithmetic --base 0 --plus 1 --minus 2",
    "sample complete",
    "viz recon-grid",
    "viz samples",
    "viz traverse",
    "viz decompressions",
    "viz latent-scatter",
    "viz aggregate-posterior",
    "viz bits",
    "viz receptive-field",
    "viz training-curves",
    "viz rate-distortion",
]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("x.jpg", "'x.jpg' does not end in .png"),
        ("folder.png", "folder.png: a directory"),
        ("text.png/x.png", "text.png; a file is where a directory was expected"),
        ("", "does not end in .png"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_can_not_be_is_refused_before_any_work(here, monkeypatch, capsys, command, output, said):
    (here / "folder.png").mkdir()
    for module in ("sample", "interpolate", "codes", "charts", "viz"):
        monkeypatch.setattr(f"vlae.cli.{module}.choose_model", lambda _: pytest.fail("a model was loaded"))
    assert main([*command.split(), "--model", "vlae", "--output", output]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vlae: error: ") and error.count("\n") == 1 and said in error, error


def test_a_default_place_that_can_not_be_is_refused_before_any_work(here, monkeypatch, capsys):
    (here / "run").mkdir()
    (here / "run/model").symlink_to(here / "vlae")
    (here / "run/samples").write_text("in the way")
    monkeypatch.setattr("vlae.sampling.prior_samples", lambda *_, **__: pytest.fail("images were drawn"))
    assert main(["sample", "prior", "--model", "run/model"]) == 2
    assert "run/samples; a file is where a directory was expected" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["sample prior", "sample complete --images 1 --candidates 2"])
def test_an_array_that_was_not_named_is_not_lost(here, capsys, words):
    words = f"{words} --model vlae --count 2"
    np.savez("data.npz", images=np.arange(3))
    before = (here / "data.npz").read_bytes()
    assert main([*words.split(), "--output", "data.png"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "data.npz" in error and "another --output" in error
    assert (here / "data.npz").read_bytes() == before and not (here / "data.png").exists()
    for _ in range(2):  # again over the pair that it has written itself
        run(words)
        assert len(np.load("out.npz")["images"]) == 2
    (here / "only.png").write_bytes(b"old")  # named, so it may go
    run(words, "only.png")
    (here / "folder.npz").mkdir()
    (here / "folder.png").write_bytes(b"old")
    assert main([*words.split(), "--output", "folder.png"]) == 2
    assert "folder.npz: a directory" in capsys.readouterr().err


def test_the_help_names_the_array_beside_the_picture(capsys):
    for command in ("prior", "complete"):
        with pytest.raises(SystemExit):
            main(["sample", command, "--help"])
        assert ".npz" in capsys.readouterr().out


def test_a_mask_of_any_kind_without_loss(here, drawn):
    """White as palette, with an alpha channel that hides nothing, or of one bit is white."""
    grey = Image.open("mask.png")
    for mode in ("1", "P", "RGB", "LA", "RGBA"):
        grey.convert(mode).save("other.png")
        run("sample complete --model vlae --images 0 --count 1 --candidates 1 --mask other.png")
        assert torch.equal(drawn["completions"][1][0, 0], torch.arange(8)[:, None].expand(8, 8) < 3), mode


def test_attributes_are_words_of_one_option(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    vlae.ConditionalVAE(SHAPE, attributes=3, **VAE).save_pretrained("told")
    told = []
    for words in (["0.5", "-1", "2e-1"], ["[0.5,-1,0.2]"]):
        assert main(["sample", "prior", "--model", "told", "--count", "2", "--attributes", *words]) == 0
        told.append(np.load("told/samples/prior_samples.npz")["images"])
    np.testing.assert_array_equal(*told)
    assert main(["sample", "prior", "--model", "told", "--attributes", "1", "2"]) == 2
    assert "3" in capsys.readouterr().err

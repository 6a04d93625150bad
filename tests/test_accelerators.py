"""Models on another device than the CPU's, on machines that have none: a pretended one.

Its tensors say that they are on `meta`, and their values lie in the CPU's memory. Whatever computes with tensors of
both devices, other than in the ways in which CUDA allows it, fails; everything else gives the CPU's numbers.
"""

import copy
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

import vlae
from vlae import VlaeError, machine, models
from vlae.cli import choices, main
from vlae.data import ImageDataset
from vlae.evaluation import codes, doctor
from vlae.evaluation.classifier import Classifier
from vlae.evaluation.measurements import Settings
from vlae.evaluation.suite import measure
from vlae.models.latents import each

DEVICE = torch.device("meta")
SHAPE = (1, 8, 8)

aten = torch.ops.aten
MOVES = (aten.copy_.default, aten._to_copy.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class Far(torch.Tensor):
    """A tensor on the pretended device; its values are in `near`."""

    @staticmethod
    def __new__(cls, near):
        made = torch.Tensor._make_wrapper_subclass(
            cls, near.shape, near.stride(), near.storage_offset(), dtype=near.dtype, device=DEVICE
        )
        made.near = near
        return made

    def __repr__(self):
        return f"Far({self.near})"

    def __format__(self, form):
        return format(self.near, form)

    def tolist(self):
        return self.near.tolist()

    def __getitem__(self, key):  # PyTorch makes tensors of lists without asking
        parts = key if isinstance(key, tuple) else (key,)
        return super().__getitem__(tuple(torch.tensor(part) if isinstance(part, list) else part for part in parts))

    def quantile(self, at, dim):  # PyTorch's turns tensors in place, which a wrapper does not see
        assert isinstance(at, Far)
        with _disable_current_modes():
            return Far(self.near.quantile(at.near, dim))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


class Pretending(TorchDispatchMode):
    """Makes tensors there, too, and sees what mixes both."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


def compute(function, args, kwargs):
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    far = any(isinstance(tensor, Far) for tensor in tensors)
    near = any(not isinstance(tensor, Far) and tensor.ndim for tensor in tensors)
    assert all(isinstance(tensor, Far) or tensor.device != DEVICE for tensor in tensors), "a tensor without values"
    if far and near and function not in MOVES and not (function in INDEXED and isinstance(args[0], Far)):
        raise AssertionError(f"{function} mixes devices: {[(list(t.shape), str(t.device)) for t in tensors]}")
    named = kwargs.get("device")
    there = far if named is None else torch.device(named) == DEVICE
    kwargs = kwargs if named is None else {**kwargs, "device": torch.device("cpu")}
    found = function(*tree_map(values_of, args), **tree_map(values_of, kwargs))
    if function._schema.is_mutable:
        return args[0] if isinstance(found, torch.Tensor) else found
    return tree_map(lambda x: Far(x) if there and isinstance(x, torch.Tensor) else x, found)


def values_of(x):
    return x.near if isinstance(x, Far) else x


@contextmanager
def pretended(monkeypatch):
    """Inside, `.to(DEVICE)` moves tensors and modules to the pretended device."""
    autocast = torch.autocast
    with monkeypatch.context() as patch, Pretending():
        # Neither knows of such tensors.
        patch.setattr(torch, "autocast", lambda kind, **rest: autocast("cpu" if kind == DEVICE.type else kind, **rest))
        patch.setattr(torch, "inference_mode", torch.no_grad)
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, partial(moved, getattr(torch, name)))
        yield


def moved(make, data, device=None, **rest):
    """What makes tensors of Python's lists makes them without asking the mode."""
    made = make(data, **rest)
    return made if device is None else made.to(device)


@pytest.fixture
def elsewhere(monkeypatch):
    """What a function of a model gives, when the model is on the CPU and when it is on the pretended device."""

    def both(model, function):
        here = function(copy.deepcopy(model))
        with pretended(monkeypatch):
            there = function(copy.deepcopy(model).to(DEVICE))
            there = tree_map(lambda x: x.cpu() if isinstance(x, torch.Tensor) else x, there)
        return here, there

    return both


def test_the_pretended_device_tells_mixtures(monkeypatch):
    """The tests below show something: a mixture fails, and so does a NumPy array of what is there."""
    with pretended(monkeypatch):
        there = torch.arange(6.0).to(DEVICE)
        assert there.device == DEVICE and (there.view(2, 3) @ torch.ones(3, device=DEVICE)).device == DEVICE
        with pytest.raises(AssertionError, match="mixes devices"):
            there + torch.ones(6)
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()
        torch.testing.assert_close((2 * there + torch.tensor(1.0)).cpu(), 2 * torch.arange(6.0) + 1)
        there += 1
        assert there.cpu().tolist() == [1, 2, 3, 4, 5, 6]


def images(count, split="test"):
    pixels = torch.randint(0, 2, (count, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    factors = torch.stack([torch.arange(count) % 2, torch.arange(count) // 2 % 3], 1)
    labels = torch.arange(count) % 3
    return ImageDataset(pixels, 2, name="noise", split=split, labels=labels, factors=factors, binarize=None)


MLP = {"latent_dim": 3, "architecture": "mlp", "widths": [6]}
SMALL = {"channels": 4, "decoder_layers": 1, "encoder_widths": [4], "encoder_hidden": 8, "flow_hidden": (8,)}
MODELS = {
    "VAE": lambda: vlae.VAE(SHAPE, **MLP),
    "VLAE": lambda: vlae.VLAE(SHAPE, latent_dim=3, **SMALL),
    "maps": lambda: vlae.VLAE(SHAPE, latent_maps=2, **SMALL),
    "two stacks": lambda: vlae.VLAE(SHAPE, latent_dim=2, stacks="two", **SMALL),
    "IAF": lambda: vlae.VLAE(SHAPE, latent_dim=2, posterior="iaf", **SMALL),
    "conditional": lambda: vlae.VLAE(SHAPE, latent_dim=2, classes=3, **SMALL),
    "LadderVAE": lambda: models.LadderVAE(SHAPE, latent_dims=(3, 2), hidden=5),
    "VQVAE": lambda: models.VQVAE(SHAPE, codes=5, code_dim=3, widths=[4], prior_layers=1, prior_channels=6),
    "DenoisingAutoencoder": lambda: models.DenoisingAutoencoder(SHAPE, **MLP),
    "PixelCNN": lambda: models.PixelCNN(SHAPE, decoder_layers=1, channels=4),
}


@pytest.fixture(params=MODELS)
def model(request):
    made = MODELS[request.param]().double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.5)
    return made


def same(here, there):
    torch.testing.assert_close(there, here, rtol=0, atol=0)


def test_the_whole_evaluation(model, elsewhere):
    judge = Classifier(SHAPE, classes=3).eval()
    few = {"nll_samples": (2, 5), "nll_images": 7, "information_images": 9, "quality_images": 11, "train_images": 30}
    sets = images(20), images(40, "train")
    here, there = elsewhere(model, lambda model: measure(model, *sets, Settings(**few), judge))
    assert len(here.values) > 5
    assert there.values == pytest.approx(here.values, rel=1e-9)  # SciPy sums in the order of addresses
    assert there.skipped == here.skipped
    same(here.pictures, there.pictures)


def test_the_doctor(model, elsewhere):
    here, there = elsewhere(model, lambda model: doctor.diagnose(model, images(20)))
    assert here.findings
    assert there == here


def test_samples_and_decoding(model, elsewhere):
    from vlae.sampling import decode, decompressions, interpolate, posterior_means, prior_samples
    from vlae.sampling.decoding import one_code

    told = images(4).labels if model.condition else None

    def pictures(model):
        x = model.placed(images(4).tensor())
        context = model.context_of(told, None)
        found = [prior_samples(model, 4, seed=3, context=context)]
        if model.latent_size:
            z = posterior_means(model, x, context)
            found += [model.reconstruct(x, context=context), decode(model, z, True, 5, context)]
            found += [decompressions(model, x, 7, context)]
            if not model.discrete:
                path = interpolate(model, one_code(z, 0), one_code(z, 1), 3, "spherical")
                found += [*each(lambda level: level, path if isinstance(path, tuple) else (path,))]
        assert all(image.device == next(model.parameters()).device for image in found)
        return found

    same(*elsewhere(model, pictures))


def test_traversals_completions_and_codes(model, elsewhere):
    from vlae.sampling import complete, dimension_rates, posterior_means, prior_quantiles, traverse, traverse_noise
    from vlae.sampling.decoding import one_code

    data = images(6)

    def found(model):
        x, context = model.placed(data.tensor()), model.context_of(data.labels, None)
        result = []
        if model.autoregressive:
            mask = torch.arange(8).view(8, 1) < 4
            told = None if context is None else context[0]
            done = complete(model, x[:1].expand(3, *SHAPE), mask, 5, 2, 9, told)
            result += [done.images, done.log_evidence]
        if model.latent_size and not model.discrete:
            one = one_code(posterior_means(model, x, context), 0)
            values = torch.tensor([-1.0, 0.5], dtype=torch.float64)
            result += [codes.code_means(model, data)]
            result += [*(t for t in tree_leaves(traverse(one, 1, values)))]
            if model.has_bound:
                result += [
                    dimension_rates(model, x, context),
                    codes.code_bits(model, data),
                    codes.code_draws(model, data),
                ]
                if context is None:
                    result += [*tree_leaves(traverse_noise(model, one, 1, values))]
                    result += [prior_quantiles(model, [0, 1], [0.1, 0.9])]
        return result

    same(*elsewhere(model, found))


def test_objectives(elsewhere):
    """The value of each objective; the gradients of pretended tensors are not to be had."""
    from vlae import objectives

    x = images(6).tensor().double()
    kinds = [
        objectives.ELBO(free_nats=1.0),
        objectives.IWAE(samples=3),
        objectives.GECO(40.0),
        objectives.Capacity(2.0),
        objectives.SoftFreeBits(1.0),
        objectives.InfoVAE(),
    ]

    def losses(model):
        result = []
        for kind in kinds:
            objective = copy.deepcopy(kind).double()
            objective.prepare(model)
            torch.manual_seed(2)
            with torch.no_grad():
                result.append(
                    objective.to(next(model.parameters()).device).compute(model, model.placed(x), 0.5)[0].cpu()
                )
        return torch.stack(result)

    here, there = elsewhere(MODELS["VAE"]().double(), losses)
    assert here.isfinite().all()
    same(here, there)


def test_images_on_another_device_are_refused(monkeypatch):
    model = MODELS["VAE"]().double()
    with pretended(monkeypatch):
        model = model.to(DEVICE)
        with pytest.raises(VlaeError, match="the images are on cpu and the model is on meta"):
            model.elbo(images(2).tensor().double())


COMMANDS = {
    "sample prior": ["--count", "3"],
    "sample interpolate": ["--images", "0", "1", "2", "3", "--steps", "3"],
    "sample arithmetic": ["--base", "0", "--plus", "1", "--minus", "2", "--draws", "2"],
    "sample complete": ["--images", "0", "--count", "2", "--candidates", "3"],
    "viz traverse": ["--count", "2"],
    "viz decompressions": ["--count", "2", "--draws", "2"],
    "viz recon-grid": ["--count", "3"],
    "viz samples": ["--count", "3"],
    "viz latent-scatter": ["--count", "30"],
    "viz aggregate-posterior": ["--count", "30"],
    "viz rate-distortion": ["--count", "30"],
    "doctor": ["--images", "40"],
    "eval": [
        "--data.limit",
        "40",
        "--only",
        "bound",
        "nll",
        "reconstruction",
        "--nll_samples",
        "3",
        "--nll_images",
        "5",
    ],
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command with a tiny model of the digits, and gives what it wrote by its path."""
    monkeypatch.chdir(tmp_path)
    options = {"likelihood": "categorical", "likelihood_options": {"levels": 17}}
    model = vlae.VLAE(SHAPE, latent_dim=2, **SMALL, **options)
    model.metadata["protocol"] = {"name": "digits"}
    model.save_pretrained("model")
    monkeypatch.setattr(machine, "find_device", lambda name: torch.device("cpu" if name == "cpu" else DEVICE))

    def written(command, *words):
        data = [] if command == "sample prior" else ["--data.name", "digits"]
        assert main([*command.split(), "--model", "model", *data, *words]) == 0
        paths = [path for path in tmp_path.rglob("*") if path.is_file() and "model" not in path.parts]
        found = {path.name: contents(path) for path in paths}
        for path in paths:
            path.unlink()
        return found

    return written


def contents(path):
    """What is to be the same: of pages and tables of all sorts those without the machine and the command."""
    if path.suffix == ".npz":
        return np.load(path)["images"].tolist()
    return path.read_bytes() if path.name == "doctor.json" or path.suffix in (".png", ".csv") else None


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compute_where_they_are_told(command, run, monkeypatch):
    """They write what they write on the CPU."""
    here = run(command, *COMMANDS[command])
    with pretended(monkeypatch):
        there = run(command, *COMMANDS[command], "--device", "there")
    assert any(here.values())
    assert there == here


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "cuda:-1"])
def test_names_that_are_no_device(name):
    with pytest.raises(VlaeError, match=r"give auto, cpu, cuda or, with its number, cuda:1"):
        machine.find_device(name)


@pytest.fixture
def gpus(monkeypatch):
    """So many of them, as far as PyTorch says."""

    def have(count, kind="cuda"):
        here = torch.device(kind) if count else None
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: here)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)

    return have


def test_devices_are_found_by_name(gpus, monkeypatch):
    gpus(0)
    assert machine.find_device("auto") == machine.find_device("cpu") == torch.device("cpu")
    with pytest.raises(VlaeError, match=r"there is no device 'cuda' here \(found: none but the CPU\)"):
        machine.find_device("cuda")
    gpus(2)
    assert machine.find_device("auto") == machine.find_device("cuda") == torch.device("cuda:0")
    assert machine.find_device("cuda:1") == torch.device("cuda:1")
    assert machine.find_device("cpu") == torch.device("cpu")
    with pytest.raises(VlaeError, match=r"no device 'cuda:2' here \(found: cuda, 2 of them\)"):
        machine.find_device("cuda:2")
    with pytest.raises(VlaeError, match=r"no device 'xpu' here \(found: cuda"):
        machine.find_device("xpu")
    for process, device in enumerate(("cuda:0", "cuda:1", "cuda:0")):
        monkeypatch.setenv("LOCAL_RANK", str(process))
        assert machine.find_device("cuda") == torch.device(device)
    gpus(1, "mps")
    assert machine.find_device("auto") == torch.device("cpu")
    with pytest.raises(VlaeError, match="float64"):
        machine.find_device("mps")


def test_a_device_that_is_not_there_is_one_line_before_anything_is_read(capsys, gpus):
    gpus(0)
    assert main(["eval", "nowhere", "--device", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("vlae: error: there is no device 'cuda' here")


def test_convolutions_keep_float32_on_a_gpu(monkeypatch, gpus):
    gpus(1)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    moved_to = []
    model = SimpleNamespace(to=lambda device: moved_to.append(device) or model)
    monkeypatch.setattr(choices, "_chosen", lambda settings: (model, None))
    for name, allowed in (("cpu", True), ("auto", False)):
        assert choices.choose_model({"device": name}) == (model, None)
        assert torch.backends.cudnn.allow_tf32 == allowed
    assert moved_to == [torch.device("cpu"), torch.device("cuda:0")]


def test_too_little_memory_is_one_line(capsys, monkeypatch):
    """On a GPU, and on the CPU, whose message PyTorch words otherwise."""
    import vlae.cli

    errors = [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nGPU 0 has"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        MemoryError("Unable to allocate 2.03 GiB for an array"),  # NumPy's, of the codec's tables
    ]

    def fails(words):
        raise errors.pop()

    monkeypatch.setitem(vlae.cli.COMMANDS, "eval", (fails, ""))
    while errors:
        assert main(["eval"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("vlae: error: out of memory") and said.count("\n") == 1
        assert "batch_size" in said

"""The Variational Lossy Autoencoder on one page: Chen et al. 2017, arXiv 1611.02731.

    python examples/train_minimal.py --epochs 10 --use-flow    # scikit-learn's 8x8 digits: seconds
    python examples/train_minimal.py --data mnist --epochs 3 --use-flow --free-bits 7.84    # minutes per epoch

The idea (section 3.1): a decoder that sees only a small window of earlier pixels models the texture by itself, and what
the window can't hold, the global shape, has to go through z. Only the images come from vlae here.
"""

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.distributions import Bernoulli, Normal
from torch.nn import functional as F

import vlae.data


class MaskedLinear(nn.Linear):
    """Output o sees input i only where mask[o, i]."""

    def __init__(self, mask):
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.float())

    def forward(self, x):
        """[B, inputs] -> [B, outputs]."""
        return F.linear(x, self.weight * self.mask, self.bias)


class FlowStep(nn.Module):
    """One autoregressive step eps_i = (z_i - m_i(z_<i)) exp(-s_i(z_<i)), m and s from a MADE (arXiv 1502.03509)."""

    def __init__(self, size, hidden=128):
        super().__init__()
        # Hidden unit h sees z_0 ... z_rank(h), and output i takes only hidden units that saw nothing from z_i on.
        order, rank = torch.arange(size), torch.arange(hidden) % max(size - 1, 1)
        last = MaskedLinear(order.repeat(2)[:, None] > rank)
        self.made = nn.Sequential(
            MaskedLinear(rank[:, None] >= order), nn.ReLU(), MaskedLinear(rank[:, None] >= rank), nn.ReLU(), last
        )
        nn.init.zeros_(last.weight)  # the flow starts as a small shift and scale
        nn.init.zeros_(last.bias)

    def shift_and_log_scale(self, z):
        """m and s, [B, D] each; s is softly bounded, so that no step can blow up the density."""
        m, s = self.made(z).chunk(2, dim=1)
        return m, 2 * torch.tanh(s / 2)

    def forward(self, z):
        """z [B, D] -> eps [B, D] and log |det d eps / d z| [B], all dimensions at once."""
        m, s = self.shift_and_log_scale(z)
        return (z - m) * torch.exp(-s), -s.sum(1)

    def inverse(self, eps):
        """eps -> z: z_i needs z_<i, so one dimension comes after the other."""
        z = torch.zeros_like(eps)
        for i in range(eps.shape[1]):
            m, s = self.shift_and_log_scale(z)
            z[:, i] = m[:, i] + eps[:, i] * torch.exp(s[:, i])
        return z


class MaskedConv(nn.Conv2d):
    """3x3 convolution over earlier pixels in raster order; type B sees the pixel itself too, type A doesn't."""

    def __init__(self, kind, inputs, outputs):
        super().__init__(inputs, outputs, 3, padding=1)
        self.register_buffer("mask", torch.tensor([[1.0, 1, 1], [1, kind == "B", 0], [0, 0, 0]]))

    def forward(self, x):
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


class VLAE(nn.Module):
    """Encoder q(z|x), autoregressive-flow prior p(z) and PixelCNN decoder p(x|z), for binary images [B, 1, H, W]."""

    def __init__(self, size, latent_dim=16, flow_steps=2, layers=2, channels=32):
        super().__init__()
        self.size, self.latent_dim = tuple(size), latent_dim
        half, quarter = [tuple(-(-side // n) for side in size) for n in (2, 4)]
        small = channels * math.prod(quarter)
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, channels, 3, stride=2, padding=1), nn.ELU()),
            *(nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.ELU()),
            *(nn.Flatten(), nn.Linear(small, 256), nn.ELU(), nn.Linear(256, 2 * latent_dim)),
        )
        self.flow = nn.ModuleList(FlowStep(latent_dim) for _ in range(flow_steps))
        self.features = nn.Sequential(  # z as maps at full resolution: what to draw where
            *(nn.Linear(latent_dim, 256), nn.ELU(), nn.Linear(256, small), nn.Unflatten(1, (channels, *quarter))),
            *(nn.ELU(), nn.Upsample(half), nn.Conv2d(channels, channels, 3, padding=1)),
            *(nn.ELU(), nn.Upsample(self.size), nn.Conv2d(channels, channels, 3, padding=1), nn.ELU()),
        )
        # `layers` of 3x3 see `layers` pixels far: their number is what restricts the window (section 3.1).
        self.masked = nn.ModuleList(
            [MaskedConv("A", 1, channels), *(MaskedConv("B", channels, channels) for _ in range(layers - 1))]
        )
        self.biases = nn.ModuleList(nn.Conv2d(channels, channels, 1, bias=False) for _ in range(layers))
        self.head = nn.Sequential(nn.ELU(), nn.Conv2d(channels, channels, 1), nn.ELU(), nn.Conv2d(channels, 1, 1))

    def encode(self, x):
        """q(z|x), a diagonal Gaussian."""
        mean, log_stddev = self.encoder(2 * x - 1).chunk(2, dim=1)
        return Normal(mean, torch.exp(4 * torch.tanh(log_stddev / 4)))

    def log_prior(self, z):
        """log p(z) = log N(eps; 0, I) + log |det d eps / d z|, eps = f^-1(z) in one pass (section 3.2), [B]."""
        log_det = 0
        for step in self.flow:
            z, change = step(z)
            z, log_det = z.flip(1), log_det + change  # the order is reversed between steps
        return Normal(0, 1).log_prob(z).sum(1) + log_det

    def sample_prior(self, count):
        """z = f(eps), eps ~ N(0, I), [count, D]."""
        z = torch.randn(count, self.latent_dim)
        for step in reversed(self.flow):
            z = step.inverse(z.flip(1))
        return z

    def decode(self, z, x):
        """p(x|z) = prod_i p(x_i | z, what the window holds of x_<i): all conditionals in one pass (section 3.1)."""
        features = self.features(z)
        h = self.masked[0](2 * x - 1) + self.biases[0](features)
        for masked, bias in zip(self.masked[1:], self.biases[1:], strict=True):
            h = h + masked(F.elu(h)) + bias(features)  # z is unmasked: the first pixel has nothing else to go by
        return Bernoulli(logits=self.head(h))

    def bound(self, x):
        """Distortion -log p(x|z) and rate log q(z|x) - log p(z) at one z ~ q(z|x): nats per image, [B] each.

        -ELBO is their sum (section 2.1). The rate is one sample of the KL divergence, so it may be negative.
        """
        q = self.encode(x)
        z = q.rsample()
        return -self.decode(z, x).log_prob(x).sum((1, 2, 3)), q.log_prob(z).sum(1) - self.log_prior(z)

    def sample_pixels(self, z, greedy=False):
        """An image per z, pixel by pixel: drawn from each conditional, or its more likely value."""
        x = torch.zeros(len(z), 1, *self.size)
        for i, j in torch.cartesian_prod(*map(torch.arange, self.size)):
            p = self.decode(z, x).probs[..., i, j]
            x[..., i, j] = (p > (0.5 if greedy else torch.rand_like(p))).float()
        return x


@torch.no_grad()
def report(model, images, epoch):
    """Prints the held-out bound, never clipped, and returns -ELBO in nats per image."""
    bounds = [torch.stack(model.bound(batch)) for batch in images.split(500)]
    distortion, rate = torch.cat(bounds, dim=1).mean(1).tolist()
    parts = f"distortion {distortion:.2f} + rate {rate:.2f} nats ({rate / math.log(2):.1f} bits)"
    print(f"epoch {epoch:2d}: held-out {parts} = -ELBO {distortion + rate:.2f}", flush=True)
    return distortion + rate


@torch.no_grad()
def draw(model, images, title, path):
    """Originals, what z keeps of them, and new images."""
    z = model.encode(images).mean
    rows = {
        "original": images,
        # Greedy shows the shape that z holds; where z is vague, on MNIST's first epochs say, it leaves the page blank.
        "reconstruction\ngreedy": model.sample_pixels(z, greedy=True),
        "reconstruction\ndrawn": model.sample_pixels(z),
        "sample from\nthe prior": model.sample_pixels(model.sample_prior(len(images))),
    }
    figure = Figure(figsize=(0.7 * len(images) + 1.4, 3.4), layout="constrained")
    axes = figure.subplots(len(rows), len(images), squeeze=False)
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
        for axis, image in zip(line, row, strict=True):
            axis.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_color("lightgray")
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(arguments=None):
    """Trains, reports after each epoch, and draws; a bad argument ends the program with one clear line."""
    parser = argparse.ArgumentParser(description="The Variational Lossy Autoencoder on one page.")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
    parser.add_argument("--data", choices=["digits", "mnist", "fashion_mnist"], default="digits", help="what to model")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training images")
    parser.add_argument("--use-flow", action="store_true", help="autoregressive-flow prior instead of N(0, I)")
    parser.add_argument("--layers", type=int, default=2, help="PixelCNN layers: how many pixels far the decoder sees")
    parser.add_argument(
        "--free-bits", type=float, default=4.0, help="floor of the rate in nats; the paper's MNIST: 7.84"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="images per step")
    parser.add_argument("--limit", type=int, default=10**9, help="use only the first so many training images")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and all noise")
    options = parser.parse_args(arguments)
    for name, least in {"epochs": 1, "layers": 1, "batch_size": 1, "limit": 1, "free_bits": 0}.items():
        if not getattr(options, name) >= least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}")

    torch.manual_seed(options.seed)
    try:
        train = vlae.data.load(options.data, "train", binarize="dynamic")  # drawn anew at each visit
        held_out = vlae.data.load(options.data, "validation", binarize="dynamic").tensor()  # drawn once
    except ValueError as error:
        parser.error(str(error))
    count = min(options.limit, len(train))
    model = VLAE(held_out.shape[2:], flow_steps=2 if options.use_flow else 0, layers=options.layers)
    optimizer = torch.optim.Adamax(model.parameters(), lr=4e-3)
    steps = options.epochs * math.ceil(count / options.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    report(model, held_out, epoch=0)
    for epoch in range(1, options.epochs + 1):
        for indices in torch.randperm(count).split(options.batch_size):
            distortion, rate = model.bound(train[indices])
            # Free bits: below the floor the rate costs nothing, so z isn't given up before the decoder can use it.
            loss = distortion.mean() + rate.mean().clamp(min=options.free_bits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        nats = report(model, held_out, epoch)

    path = Path("results/reconstructions.png")
    draw(model, held_out[:16], f"{options.data}, epoch {epoch}: held-out -ELBO {nats:.2f} nats per image", path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()

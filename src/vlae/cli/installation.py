"""`vlae verify` and `vlae models`: what is installed."""

from __future__ import annotations

from vlae.cli.choices import parser_for
from vlae.training.configuration import parse


def verify(words: list[str]) -> int:
    """Checks this installation against exact answers, in seconds."""
    parse(parser_for("verify"), words)
    from vlae.verify import run

    return run()


def models(words: list[str]) -> int:
    """Lists the pretrained models with what they have to reach on their test set; the model cards say more."""
    parse(parser_for("models"), words)
    from vlae.models.saving import load, pretrained_names

    heads = f"{'':20s}{'':9s}{'parameters':>12s}{'-ELBO':>10s}{'rate':>8s}{'NLL':>10s}"
    print(f"{heads}  nats, NLL with the K of its card; trained on")
    for name in pretrained_names():
        model = load(name)
        size, expected = sum(p.numel() for p in model.parameters()), model.metadata.get("expected", {})
        nll = expected.get("nll_of_all") or expected.get("nll") or expected.get("negative_elbo")
        numbers = (expected.get("negative_elbo"), expected.get("rate"), nll)
        elbo, rate, nll = ("-" if number is None else f"{number:.2f}" for number in numbers)
        about = model.metadata.get("protocol", "")
        print(f"{name:20s}{type(model).__name__:9s}{size:>12,}{elbo:>10s}{rate:>8s}{nll:>10s}  {about}")
    return 0

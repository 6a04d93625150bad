"""`vlae export`: a model's networks as programs that run without vlae."""

from __future__ import annotations

from vlae.cli.choices import add_choice, add_target, choose_model, parser_for, take_target
from vlae.training.configuration import parse


def export(words: list[str]) -> int:
    """Encoder, decoder and the conditionals of an autoregressive decoder, each checked against the model."""
    parser = parser_for("export")
    add_target(parser)
    parser.add_argument("directory", type=str, help="where to put the programs")
    add_choice(parser, device=False)
    parser.add_argument("--onnx", type=bool, default=False, help="ONNX too; needs pip install 'vlae[onnx]'")
    settings = parse(parser, words, flags=["--onnx"])
    from vlae.models.exporting import export as write_programs

    model, _ = choose_model(take_target(settings))
    for file, difference in write_programs(model, settings.directory, settings.onnx).items():
        print(f"{settings.directory}/{file}: within {difference:.1e} of the model, at another batch size")
    print(f"{settings.directory}/export.json: the inputs, the outputs and the likelihood that gives them a meaning")
    return 0

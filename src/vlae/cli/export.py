"""`vlae export`: a model's networks as programs that run without vlae."""

from __future__ import annotations

from vlae.cli.choices import add_choice, choose_model, parse_choice, parser_for


def export(words: list[str]) -> int:
    """Encoder, decoder and the conditionals of an autoregressive decoder, each checked against the model."""
    parser = parser_for("export")
    add_choice(parser, device=False)
    parser.add_argument("directory", type=str, help="where to put the programs")
    parser.add_argument("--onnx", type=bool, default=False, help="ONNX too; needs pip install 'vlae[onnx]'")
    settings = parse_choice(parser, words, flags=["--onnx"])
    from vlae.models.exporting import export as write_programs

    model, _ = choose_model(settings)
    for file, difference in write_programs(model, settings.directory, settings.onnx).items():
        print(f"{settings.directory}/{file}: within {difference:.1e} of the model, at another batch size")
    print(f"{settings.directory}/export.json: the inputs, the outputs and the likelihood that gives them a meaning")
    return 0

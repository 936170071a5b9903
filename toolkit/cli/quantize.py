"""`toolkit quantize`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from toolkit.cli import options, output

METHODS = [
    "dynamic-int8", "static-int8", "integer-int8", "int16-activations", "weight-int8", "weight-int4", "fp16", "bf16"
]  # fmt: skip
CALIBRATIONS = ["min-max", "percentile", "entropy", "mse"]


@click.command(name="quantize")
@click.argument("model")
@options.data_options
@click.option("-o", "--output", "output_folder", metavar="FOLDER", required=True, help="The quantized artifact folder.")
@click.option("--method", type=click.Choice(METHODS), default="dynamic-int8", show_default=True)
@click.option(
    "--engine",
    type=click.Choice(options.ENGINES),
    help="What a checkpoint is exported for.",
)
@click.option("--io", type=click.Choice(["int8", "uint8"]), help="Inputs and outputs of integer-int8.  [default: int8]")
@click.option(
    "--scales",
    type=click.Choice(["channel", "tensor"]),
    default="channel",
    show_default=True,
    help="What shares a scale in LiteRT's fully connected layers and tables; runtimes before 2.18 take one per tensor.",
)
@click.option("--lengths", metavar="N,N,…", help="Input lengths of a LiteRT file.  [default: from the data]")
@click.option("--opset", type=click.IntRange(min=13), help="ONNX opset.")
@click.option("--embeddings/--no-embeddings", default=True, show_default=True, help="Quantize embedding tables too.")
@click.option("--keep", multiple=True, metavar="LAYER", help="Leave this layer in float. May be repeated.")
@click.option("--block-size", type=click.Choice(["32", "64", "128"]), default="32", help="Weights that share a scale.")
@click.option("--calibration", type=click.Choice(CALIBRATIONS), default="min-max", show_default=True)
@click.option("--percentile", type=click.FloatRange(50, 100, min_open=True), default=99.99, show_default=True)
@click.option("--samples", type=click.IntRange(min=1), default=256, show_default=True, help="Calibration examples.")
@click.option("--calibration-data", metavar="FILE", help="Calibrate on these texts instead of training texts.")
@click.option("--sensitivity", is_flag=True, help="Measure every layer alone: a table and a plot.")
@click.option("--mixed", is_flag=True, help="Keep those layers in float that --min-score asks for.")
@click.option("--min-score", metavar="SHARE", help="Of --mixed: 99% of the float score, or 0.83.  [default: 99%]")
@click.option("--examples", type=click.IntRange(min=1), default=200, show_default=True, help="Of --sensitivity.")
@click.option("--balance", type=click.FloatRange(0, 1), metavar="ALPHA", help="Balance activations first; 0.7, say.")
@click.option("--qat", "qat_epochs", type=click.IntRange(min=0), default=0, help="Epochs of quantized training.")
@click.option("--qat-learning-rate", type=click.FloatRange(min=0, min_open=True), default=1e-5, show_default=True)
@options.graph_options
@options.run_options
def command(
    model: str,
    output_folder: str,
    as_json: bool,
    method: str,
    embeddings: bool,
    keep: tuple[str, ...],
    block_size: str,
    calibration: str,
    percentile: float,
    mixed: bool,
    min_score: str | None,
    lengths: str | None,
    cache_dir: str | None,
    overwrite: bool,
    engine: str | None,
    opset: int | None,
    samples: int,
    calibration_data: str | None,
    sensitivity: bool,
    examples: int,
    balance: float | None,
    qat_epochs: int,
    qat_learning_rate: float,
    io: str | None,
    scales: str,
    **given: Any,
) -> None:
    """Quantize MODEL: an artifact folder that `toolkit export` wrote, or a trained checkpoint or an ONNX file for an
    --engine.

    \b
    Examples:
      toolkit quantize artifact/ -o artifact-int8/
      toolkit quantize artifact/ --method static-int8 --calibration mse --data reviews.csv -o artifact-int8/
      toolkit quantize ./tuned --engine tensorrt --method static-int8 --data reviews.csv --mixed -o mixed/
    """
    from toolkit import steps
    from toolkit.cli.convert import interruptible

    with output.reporting(as_json) as reporter:
        result = steps.quantize(
            model,
            output_folder,
            method=method,
            cache_dir=cache_dir,
            overwrite=overwrite,
            reporter=reporter,
            options=given,
            around=interruptible,
            parameters={
                "embeddings": embeddings, "keep": list(keep), "block_size": int(block_size),
                "calibration": calibration, "percentile": percentile, "scales": scales, **({"io": io} if io else {}),
            },
            engine=engine, opset=opset, lengths=options.lengths(lengths), samples=samples,
            calibration_data=calibration_data, sensitivity=sensitivity,
            min_score=(min_score or "99%") if mixed or min_score else None,
            examples=examples, balance=balance, qat_epochs=qat_epochs, qat_learning_rate=qat_learning_rate,
        )  # fmt: skip
    if as_json:
        output.print_json(result)
    else:
        _print(result, method)


def _print(result: Mapping[str, Any], method: str) -> None:
    """The table of sensitivity if there is one, the warnings, and what became of the size."""
    if "sensitivity" in result:
        table = result["sensitivity"]
        output.print_table(
            f"{method} of one layer at a time, on {table['examples']} examples; float score {table['float_score']:.4f}",
            ("layer", "score", "change", "divergence", "saves"),
            [
                (
                    row["layer"] + (" (float)" if row["layer"] in result["keep"] else ""), f"{row['score']:.4f}",
                    f"{row['score_change']:+.4f}", f"{row['divergence']:.5f}", f"{row['bytes_saved'] / 1e6:.2f} MB",
                )
                for row in sorted(table["layers"], key=lambda row: -row["divergence"])
            ],
        )  # fmt: skip
        if "score" in table:
            click.echo(
                f"Together: {table['score']:.4f}, floor {table['floor']:.4f}, {len(result['keep'])} layers in float."
            )
    for warning in result["warnings"]:
        click.echo(f"Warning: {warning}", err=True)
    before, after = result["size_before_bytes"] / 1e6, result["size_after_bytes"] / 1e6
    click.echo(f"{result['output']}: {before:.1f} MB → {after:.1f} MB.")

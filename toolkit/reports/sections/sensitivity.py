"""What each layer costs when it alone is quantized."""

from __future__ import annotations

from functools import partial

from toolkit.reports import charts, text
from toolkit.reports.blocks import Block, Figure, Table, Tag, Text
from toolkit.reports.data import Report

TITLE = "Sensitivity of the layers"
WANTS = (
    "a table of sensitivity",
    "toolkit quantize MODEL --sensitivity --data FILE -o out/; toolkit report out/sensitivity.json",
)
_MOST = 40


def blocks(report: Report) -> list[Block]:
    """A bar per layer, those first that change the answers the most."""
    made: list[Block] = []
    for found in report.sensitivities:
        rows = sorted(found.layers, key=lambda layer: -layer.divergence)
        kept = set(found.keep)
        bars = [
            charts.Bar(
                f"{layer.layer} (float)" if layer.layer in kept else layer.layer,
                [(1 if layer.layer in kept else 0, max(layer.divergence, 0.0))],
                f"{layer.score_change:+.4f}",
                title=f"{layer.layer}: divergence {layer.divergence:.3g}, score {layer.score_change:+.4f}",
            )
            for layer in rows[:_MOST]
        ]
        table = [
            (
                layer.layer, text.number(layer.divergence), f"{layer.score:.4f}", f"{layer.score_change:+.4f}",
                text.size(layer.bytes_saved), Tag("stays in float", "unknown") if layer.layer in kept else "",
            )
            for layer in rows
        ]  # fmt: skip
        if bars:
            together = ""
            if found.score is not None and found.floor is not None:
                together = f" Together: {found.score:.4f}, floor {found.floor:.4f}, {len(kept)} layers in float."
            made += [
                Text(
                    f"{found.name}: {found.method} of one layer at a time on {found.examples} examples; "
                    f"the float score is {found.float_score:.4f}.{together}"
                ),
                Figure(
                    f"{found.name}: sensitivity to {found.method}",
                    "Bars: how far the answers move (nats). Beside them: the change of the score. Hatched: stays in "
                    f"float.{f' The {_MOST} most sensitive of {len(rows)} layers.' if len(rows) > _MOST else ''}",
                    partial(charts.bars, f"{found.name}: sensitivity of the layers", bars),
                    Table(("layer", "divergence", "score", "change", "saves", ""), table),
                ),
            ]
    return made

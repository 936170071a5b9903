"""Sensitivity: the layer that was spoiled is found, and the search keeps as few layers in float as the score asks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from tests import artifacts
from tests.conftest import write_csv
from tests.small_inputs import prepare
from toolkit import plot, stages
from toolkit.errors import InputError
from toolkit.stages import sensitivity

SPOILED = "bert.pooler.dense"
OTHERS = ["bert.embeddings.position_embeddings", "bert.encoder.layer.0.output.dense", "classifier"]


@pytest.fixture(scope="module")
def exported(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact one of whose layers does not bear 4 bits: one weight of every block is far larger than the rest,
    and multiplies a channel that is always zero."""
    import onnx

    from toolkit.export import onnx_layers

    folder = artifacts.export(tuned, tmp_path_factory.mktemp("exported"), "tensorrt")
    model = onnx.load(str(folder / "model.onnx"))
    layer = next(layer for layer in onnx_layers.find(model) if layer.name == SPOILED)
    stored = next(each for each in model.graph.initializer if each.name == layer.weight)
    weight = onnx.numpy_helper.to_array(stored).copy()
    weight[:, ::32] = 40.0
    stored.CopyFrom(onnx.numpy_helper.from_array(weight, layer.weight))
    mask = np.ones(weight.shape[1], dtype=np.float32)
    mask[::32] = 0
    model.graph.initializer.append(onnx.numpy_helper.from_array(mask, "mask"))
    place = next(i for i, node in enumerate(model.graph.node) if node.name == layer.node.name)
    model.graph.node.insert(place, onnx.helper.make_node("Mul", [layer.activation, "mask"], ["masked"], name="masked"))
    model.graph.node[place + 1].input[0] = "masked"
    onnx.save(model, str(folder / "model.onnx"))
    return folder


@pytest.fixture(scope="module")
def prepared(tuned: Path, tmp_path_factory: pytest.TempPathFactory, sentences: list[tuple[str, str]]) -> Path:
    folder = tmp_path_factory.mktemp("data")
    data = write_csv(folder / "some.csv", sentences[:300])
    prepare(tuned, data, folder / "prepared", known_labels=["negative", "positive"])
    return folder / "prepared"


@pytest.fixture(scope="module")
def measured(exported: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("sensitivity")
    listed = list(sensitivity.formats.get("onnx").layers(exported, artifacts.description(exported)))
    skipped = [name for name in listed if name not in (*OTHERS, SPOILED)]
    parameters = sensitivity.Parameters.model_validate(
        {
            "quantize": {"method": "weight-int4", "keep": skipped},
            "engine": "onnxruntime", "encoding": {"max_length": 64}, "examples": 60, "min_score": "99.9%",
        }
    )  # fmt: skip
    context = stages.Context(task="text-classification", data=prepared)
    return output, sensitivity.run(exported, output, parameters, context)


def test_the_spoiled_layer_is_found_and_kept_in_float(measured: tuple[Path, dict[str, Any]]) -> None:
    _, report = measured
    rows = {row["layer"]: row for row in report["layers"]}
    assert set(rows) == {*OTHERS, SPOILED}
    assert sensitivity.ranked(report["layers"])[0] == SPOILED
    assert rows[SPOILED]["divergence"] > 10 * max(rows[name]["divergence"] for name in OTHERS)
    assert all(row["score_change"] == pytest.approx(row["score"] - report["float_score"]) for row in rows.values())
    assert rows[SPOILED]["bytes_saved"] > 384 * 384 * 3
    assert report["score"] >= report["floor"] == pytest.approx(0.999 * report["float_score"])
    assert SPOILED in report["keep"]
    assert len(set(report["keep"]) & {*OTHERS, SPOILED}) < 4


def test_table_and_plot_say_the_same(measured: tuple[Path, dict[str, Any]]) -> None:
    output, report = measured
    assert json.loads((output / "sensitivity.json").read_text()) == report
    drawn = ElementTree.parse(output / "sensitivity.svg").getroot()
    written = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    for row in report["layers"]:
        assert row["layer"] in written
        assert f"{row['score_change']:+.3f}" in written
    bars = {
        element.get("class"): float(element.get("width", 0))
        for element in drawn.iter("{http://www.w3.org/2000/svg}rect")
    }
    assert bars["marked"] == 300.0  # the largest one


@pytest.mark.parametrize("needed", range(11))
def test_the_search_keeps_the_fewest_layers(needed: int) -> None:
    order = [f"layer {number}" for number in range(10)]
    asked: list[int] = []

    def measure(keep: Sequence[str]) -> float:
        assert list(keep) == order[: len(keep)]
        asked.append(len(keep))
        return 0.9 if len(keep) >= needed else 0.8

    kept, score = sensitivity.choose(order, 0.85, measure)
    assert (len(kept), score) == (needed, 0.9)
    assert len(asked) == len(set(asked)) <= 8


def test_a_floor_that_nothing_reaches_keeps_everything_and_says_so() -> None:
    kept, score = sensitivity.choose(["a", "b", "c"], 0.95, lambda keep: 0.9)
    assert (kept, score) == (["a", "b", "c"], 0.9)


def test_layers_go_back_by_harm_for_their_bytes() -> None:
    rows = [
        {"layer": "large", "divergence": 0.1, "bytes_saved": 1000},
        {"layer": "small", "divergence": 0.05, "bytes_saved": 10},
        {"layer": "harmless", "divergence": 0.0, "bytes_saved": 10},
    ]
    assert sensitivity.ranked(rows) == ["small", "large", "harmless"]


def test_data_for_evaluation_only_is_refused(
    exported: Path, tuned: Path, sentences: list[tuple[str, str]], tmp_path: Path
) -> None:
    data = write_csv(tmp_path / "some.csv", sentences[:60])
    prepare(tuned, data, tmp_path / "prepared", known_labels=["negative", "positive"], evaluate_only=True)
    parameters = sensitivity.Parameters.model_validate(
        {"quantize": {"method": "weight-int8"}, "engine": "onnxruntime", "encoding": {"max_length": 64}}
    )
    with pytest.raises(InputError, match="nothing to measure sensitivity on"):
        sensitivity.run(
            exported, tmp_path, parameters, stages.Context(task="text-classification", data=tmp_path / "prepared")
        )


def test_a_plot_escapes_what_it_is_given() -> None:
    drawn = ElementTree.fromstring(plot.bars('a & "b"', [("<x>", 1.0, "n"), ("y", -2.0, "m")], legend="l"))
    widths = [float(each.get("width", 0)) for each in drawn.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert widths == [300.0, 0.0]

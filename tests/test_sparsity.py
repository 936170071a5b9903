"""2:4 sparsity: which weights go, that they stay away while the rest recovers, and that the artifact is as sparse."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.small_inputs import ENCODERS, random_encoder
from tests.stage_runs import KilledError, kill_at, run_stage, weights
from toolkit import architecture, importance, sparsity
from toolkit.errors import InputError
from toolkit.sparsity import is_2_4

pytestmark = pytest.mark.usefixtures("torch_as_before")

SPARSE = {"sparsity": "2:4", "encoding": {"max_length": 32}, "batch_size": 16, "importance_examples": 64}


@pytest.fixture(params=ENCODERS)
def model(request: pytest.FixtureRequest) -> Any:
    return random_encoder(request.param)


def test_the_pattern_is_two_of_every_four_along_the_input() -> None:
    for group in itertools.product((0.0, -1.5), repeat=4):
        assert is_2_4([list(group)]) == (np.count_nonzero(group) <= 2)
    assert is_2_4([[1, 1, 0, 0, 0, 0, 1, 1]])
    assert not is_2_4([[0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1]])  # the last group
    assert not is_2_4([[1, 1, 0, 0], [1, 1, 1, 0]])  # the last row
    assert not is_2_4([[1, 1], [0, 0]])  # two inputs are no group
    assert is_2_4(np.zeros((3, 8), dtype=np.int8)) and not is_2_4(np.ones((3, 8), dtype=np.int8))


def test_layers_become_sparse_and_nothing_else(model: Any) -> None:
    names = sparsity.weight_names(model)
    assert len(names) == 6 * architecture.shape(model.config)["layers"] == len(set(names))
    assert not [name for name in names if "embed" in name or "classifier" in name or "pooler" in name]
    import torch

    draw = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(model.get_parameter(name).shape, generator=draw) for name in names}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    counts = sparsity.thin(model, scores)
    assert counts["matrices"] == len(names)
    assert counts["weights"] == sum(before[name].numel() for name in names) == 2 * counts["removed"]
    for name, value in model.state_dict().items():
        if name not in scores:
            assert torch.equal(value, before[name])
            continue
        assert is_2_4(value)
        for row, kept, score in zip(before[name][:3], value[:3], scores[name][:3], strict=True):
            for start in range(0, len(row), 4):
                part = score[start : start + 4]
                best = sorted(range(4), key=lambda i: -part[i])[:2]
                expected = [float(row[start + i]) if i in best else 0.0 for i in range(4)]
                assert kept[start : start + 4].tolist() == expected


def test_of_equal_weights_the_first_ones_stay(model: Any) -> None:
    import torch

    name = sparsity.weight_names(model)[0]
    with torch.no_grad():
        model.get_parameter(name).fill_(1.0)
    sparsity.thin(model, {name: torch.ones_like(model.get_parameter(name))})
    assert model.get_parameter(name)[0, :8].tolist() == [1, 1, 0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("method", ["taylor", "fisher", "magnitude"])
def test_importance_of_a_weight_is_what_its_absence_would_do(
    model: Any, method: importance.Method
) -> None:  # fmt: skip
    """Against the slope of the loss when single weights are scaled."""
    import torch

    model = model.double()
    ids = torch.randint(5, 200, (3, 20), generator=torch.Generator().manual_seed(0))
    batches = [
        {"input_ids": part, "attention_mask": torch.ones_like(part), "labels": torch.tensor([label])}
        for part, label in zip(ids.split(1), (0, 1, 2), strict=True)
    ]
    name = sparsity.weight_names(model)[4]
    found = importance.of_weights(model, method, [name], batches, lambda model, batch: model(**batch).loss)[name]
    weight, step = model.get_parameter(name), 1e-4
    for place in ((0, 0), (3, 7), (20, 30)):
        original = weight[place].item()
        if method == "magnitude":
            assert found[place] == abs(original)
            continue
        slopes = []
        for batch in batches:
            losses = []
            for factor in (1 + step, 1 - step):
                with torch.no_grad():
                    weight[place] = original * factor
                    losses.append(model(**batch).loss.item())
                    weight[place] = original
            slopes.append(abs(losses[0] - losses[1]) / (2 * step))
        expected = sum(slopes) if method == "taylor" else sum(slope**2 for slope in slopes)
        assert found[place].item() == pytest.approx(expected, rel=1e-3, abs=1e-12)


def test_inputs_that_are_no_multiple_of_four_are_refused() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=10, hidden_size=12, num_attention_heads=2, num_hidden_layers=1, intermediate_size=6)
    with pytest.raises(InputError, match=r"output\.dense has 6 inputs; 2:4 sparsity needs a multiple of 4"):
        sparsity.weight_names(BertForSequenceClassification(config))


@pytest.fixture(scope="module")
def lesson(tuned: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    run_stage("teach", tuned, folder, prepared, encoding={"max_length": 32})
    return folder


Done = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def recovered(tuned: Path, prepared: Path, lesson: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Pruned and trained for two epochs; after every step the weights that were sparse still are."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    sparse: list[Any] = []
    steps = []

    def look(optimizer: Any, *_: Any) -> None:
        if not steps:
            sparse.extend(
                p for group in optimizer.param_groups for p in group["params"] if p.ndim == 2 and is_2_4(p.detach())
            )
        steps.append(len(sparse))
        assert all(is_2_4(p.detach()) for p in sparse)

    output = tmp_path_factory.mktemp("recovered")
    hook = register_optimizer_step_post_hook(look)
    try:
        report = run_stage("prune", tuned, output, prepared, **SPARSE, epochs=2, teaching=[str(lesson)])
    finally:
        hook.remove()
    assert len(steps) == 28 and set(steps) == {12}
    return output, report


def test_sparse_weights_stay_zero_while_the_others_recover(recovered: Done, tuned: Path) -> None:
    from safetensors.numpy import load_file
    from transformers import AutoModelForSequenceClassification

    folder, report = recovered
    stored, before = load_file(folder / "model.safetensors"), load_file(tuned / "model.safetensors")
    found = AutoModelForSequenceClassification.from_pretrained(folder)
    names = sparsity.weight_names(found)
    assert all(is_2_4(stored[name]) for name in names)
    assert not any(is_2_4(before[name]) for name in names)
    assert report["sparsity"] == {
        "pattern": "2:4", "matrices": 12, "weights": sum(stored[name].size for name in names),
        "removed": sum(stored[name].size for name in names) // 2,
    }  # fmt: skip
    for name in names:
        kept = stored[name] != 0
        assert kept.mean() == pytest.approx(0.5, abs=1e-3)
        assert not np.array_equal(stored[name][kept], before[name][kept])  # it learned
    assert not is_2_4(stored["bert.embeddings.word_embeddings.weight"])
    losses = [entry["loss"] for entry in report["history"]]
    assert losses[-1] < losses[0]


def test_a_killed_recovery_goes_on_to_the_same_bytes(
    recovered: Done, tuned: Path, prepared: Path, lesson: Path, tmp_path: Path
) -> None:
    given = {**SPARSE, "epochs": 2, "teaching": [str(lesson)], "resume": tmp_path / "resume"}
    with pytest.raises(KilledError):
        run_stage("prune", tuned, tmp_path / "a", prepared, **given, progress=kill_at("epoch 2", 20))
    report = run_stage("prune", tuned, tmp_path / "b", prepared, **given)
    assert report == recovered[1]
    assert weights(tmp_path / "b") == weights(recovered[0])


def test_the_artifact_for_tensorrt_has_the_pattern(recovered: Done, prepared: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    run_stage("export", recovered[0], tmp_path / "artifact", prepared, format="onnx", opset=17)
    graph = onnx.load(tmp_path / "artifact" / "model.onnx").graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    products = [
        stored[name].T for node in graph.node if node.op_type == "MatMul" for name in node.input if name in stored
    ]
    assert sum(map(is_2_4, products)) == 12


def test_a_lost_pattern_is_not_passed_on(recovered: Done, tuned: Path) -> None:
    name = "bert.encoder.layer.0.output.dense.weight"
    sparsity.check_written(recovered[0], [name])
    with pytest.raises(RuntimeError, match=f"1 weights lost the 2:4 pattern, for example {name}"):
        sparsity.check_written(tuned, [name])

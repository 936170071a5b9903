"""Times of a LiteRT file's operators, by the profiler inside its C library, and the modules that they came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit import kernels, profilers, steps
from toolkit.bench import modules
from toolkit.engines import Arrays
from toolkit.errors import InputError, MissingDependencyError
from toolkit.kernels import Kernel
from toolkit.profilers import litert as profiler


@pytest.fixture(scope="module")
def artifacts(small_network: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small network in float, and in int8 with operators that XNNPACK does not take."""
    folder = tmp_path_factory.mktemp("profiled")
    steps.export(str(small_network), str(folder / "fp32"), engine="litert", lengths=[1], allow_code=True)
    steps.quantize(str(folder / "fp32"), str(folder / "int8"), method="dynamic-int8")
    return {name: folder / name for name in ("fp32", "int8")}


def profiled(folder: Path, runs: int = 3) -> tuple[Path, list[profilers.Operator]]:
    described = json.loads((folder / "artifact.json").read_text())
    tensor = described["inputs"][0]
    shape = [size if isinstance(size, int) else 1 for size in tensor["shape"]]
    inputs = {tensor["name"]: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    path = folder / described["path"]
    return path, profilers.get("litert").profile(path, 1, [inputs, inputs], runs)


def of_modules(path: Path, found: list[profilers.Operator]) -> dict[str, Any]:
    return modules.of_operators(path, "litert", [each.name for each in found])


def test_operators_inside_the_delegate_are_told(artifacts: dict[str, Path]) -> None:
    _, found = profiled(artifacts["fp32"])
    assert {each.where for each in found} == {profiler.XNNPACK}
    assert all(each.calls == 1 for each in found)
    assert len({each.name for each in found}) == len(found)
    assert sum(each.seconds for each in found) > 0
    kinds = [each.kind.partition(" (")[0] for each in found]
    # A stem, two blocks of a depthwise and a pointwise convolution with an addition, a pool, a mean and a head.
    assert kinds.count("Convolution") + kinds.count("Fully Connected") == 6
    assert (kinds.count("Max Pooling"), kinds.count("Mean"), kinds.count("Add")) == (1, 1, 2)


def test_operators_have_their_modules(artifacts: dict[str, Path]) -> None:
    path, found = profiled(artifacts["fp32"])
    places = of_modules(path, found)
    products = [each for each in found if each.kind.startswith(("Convolution", "Fully Connected"))]
    named = [places[each.name].removeprefix("net.") for each in products]
    assert named == ["stem", "blocks.0", "blocks.0.mix", "blocks.1", "blocks.1.mix", "head"]


def test_nodes_that_the_delegate_does_not_take_are_told_by_their_number(artifacts: dict[str, Path]) -> None:
    path, found = profiled(artifacts["int8"])
    own = [each for each in found if each.where is None]
    assert {each.kind for each in own} == {"DEPTHWISE_CONV_2D"}
    assert [each.name for each in found if each.where] != []
    places = of_modules(path, found)
    assert all(places[each.name] for each in own)
    mixes = [places[each.name].removeprefix("net.") for each in found if each.kind.startswith("Fully Connected")]
    assert mixes == ["blocks.0.mix", "blocks.1.mix", "head"]


def test_kinds_that_do_not_add_up_have_no_module(artifacts: dict[str, Path]) -> None:
    path, found = profiled(artifacts["fp32"])
    names = [each.name for each in found]
    additions = [name for name in names if name.startswith("Add")]
    places = modules.of_operators(path, "litert", [name for name in names if name != additions[0]])
    assert additions[1] not in places
    assert len(places) == len(of_modules(path, found)) - len(additions)
    # In another order than the file's they are not what they seem.
    assert modules.of_operators(path, "litert", names[::-1]) == {}


@pytest.fixture
def kernel(tmp_path: Path) -> tuple[Path, Arrays]:
    """A file of three products, and inputs for it."""
    path = tmp_path / "kernel.tflite"
    return path, kernels.get("litert").write(Kernel("gemm", "FULLY_CONNECTED", "fp32", (4, 8, 8), 3), path, 0)


def test_every_run_counts_once(kernel: tuple[Path, Arrays]) -> None:
    path, inputs = kernel
    found = profiler.profile(path, 1, [inputs, inputs], 5)
    assert [each.kind for each in found].count("Fully Connected (NC, F32) GEMM") == 3
    assert {each.calls for each in found} == {1}


def test_a_runtime_without_the_library_is_told(kernel: tuple[Path, Arrays], monkeypatch: pytest.MonkeyPatch) -> None:
    path, inputs = kernel
    monkeypatch.setattr(profiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"need ai-edge-litert with libLiteRt\.so"):
        profiler.profile(path, 1, [inputs], 1)


def test_engines_without_a_profiler_say_so() -> None:
    with pytest.raises(InputError, match="executorch does not tell the times of operators"):
        profilers.get("executorch")

"""Microcontrollers: TensorFlow Lite Micro and Vela themselves, on the small network in integers."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toolkit
from tests.conftest import run_toolkit
from tests.refusals import assert_refused, in_process
from toolkit import devices
from toolkit.bench import run
from toolkit.bench.encoding import encoded
from toolkit.bench.record import Record
from toolkit.bench.steps import Wanted
from toolkit.devices import Settings, mcu, mcu_vela
from toolkit.engines.litert import LiteRtEngine
from toolkit.errors import InputError, MissingDependencyError
from toolkit.export import flatbuffer, litert_memory
from toolkit.runtime import manifest as manifests

U55 = "Ethos_U55_High_End_Embedded", "Shared_Sram"


@pytest.fixture(scope="module")
def micro(small_network: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for a microcontroller."""
    output = tmp_path_factory.mktemp("micro") / "bundle"
    toolkit.convert(
        small_network, "cortex-m4", data=str(pictures), output=str(output), allow_code=True, min_score="90%",
        compress=False,
    )  # fmt: skip
    return output


def bench(bundle: Path, *addresses: str, **settings: Any) -> list[Record]:
    return run.bench(str(bundle), addresses, Wanted(), Settings(cache=Path(), **settings))


def test_the_arena_is_what_the_interpreter_takes(micro: Path) -> None:
    (record,) = bench(micro, "mcu://cortex-m")
    assert (record.kind, record.protocol.name, record.protocol.examples) == ("emulated", "arena", 3)
    assert record.failure is record.latency is record.memory is record.cycles is None
    assert record.arena is not None and record.answers is not None and record.engine is not None
    artifact = manifests.read(micro).data["artifact"]
    assert record.arena["total_bytes"] == record.arena["head_bytes"] + record.arena["tail_bytes"]
    assert litert_memory.on_a_microcontroller(micro / artifact["path"]) == {
        "version": record.engine["version"],
        "arena_bytes": record.arena["total_bytes"],
    }
    model = flatbuffer.read(micro / artifact["path"])
    assert record.arena["head_bytes"] >= litert_memory.activation_bytes(model, model.subgraphs[0])
    assert 0 < sum(record.arena["tail_parts_bytes"].values()) <= record.arena["tail_bytes"]
    assert record.arena["model_bytes"] == artifact["size_bytes"]
    assert record.engine["engine"] == "tflite-micro"
    # XNNPACK, which this machine's engine runs, may round the other way.
    assert record.answers["largest_difference"] <= 1.01 * artifact["outputs"][0]["scale"]


def test_answers_are_those_of_the_reference_kernels_to_the_last_bit(micro: Path) -> None:
    import ai_edge_litert.interpreter as litert

    whole = manifests.read(micro)
    whole, inputs = encoded(micro, run.examples_of(whole, None)[0])
    (tensor,) = whole.data["artifact"]["outputs"]
    reference = litert.OpResolverType.BUILTIN_REF
    interpreter = litert.Interpreter(str(whole.artifact), experimental_op_resolver_type=reference)
    here = LiteRtEngine(whole.artifact, 1)
    here._interpreter, here._runners = interpreter, {}
    _, said = mcu.answered(whole, inputs)
    assert len(said) > 3
    for given, answers in zip(inputs, said, strict=True):
        assert np.array_equal(here.run(given)[tensor["name"]], answers[tensor["name"]])


def test_cycles_are_an_estimate_and_fewer_on_a_larger_npu(
    micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small, large = bench(micro, "mcu://ethos-u55-32", "mcu://ethos-u55-256")
    version = metadata.version("ethos-u-vela")
    for record in (small, large):
        assert (record.kind, record.clock) == ("estimated", f"estimate of Vela {version}")
        assert record.arena is not None and record.cycles is not None and record.latency is None
        operators = record.cycles["operators"]
        assert {each["where"] for each in operators} == {"npu"}
        assert sum(each["macs"] for each in operators) == record.cycles["macs"]
        assert record.cycles["total"] >= max(each["cycles"] for each in operators) > 0
        assert record.cycles["ms"] == pytest.approx(record.cycles["total"] / record.cycles["clock_hz"] * 1e3, abs=1e-6)
        assert record.cycles["memory_bytes"]["sram"] > 0 < record.cycles["memory_bytes"]["off_chip_flash"]
    assert small.cycles is not None and large.cycles is not None
    assert small.cycles["total"] > large.cycles["total"]
    assert small.cycles["macs"] == large.cycles["macs"]
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_of_velas_may_be_named(micro: Path) -> None:
    address = "mcu://ethos-u65-256?system=Ethos_U65_Embedded&memory=Sram_Only"
    (record,) = bench(micro, address)
    assert record.cycles is not None
    assert (record.cycles["system"], record.cycles["memory"]) == ("Ethos_U65_Embedded", "Sram_Only")
    assert record.device.facts["system"] == "Ethos_U65_Embedded"
    assert record.cycles["memory_bytes"]["dram"] == 0


def test_what_the_npu_does_not_have_goes_to_the_cpu(micro: Path, tmp_path: Path) -> None:
    """A division of which Vela says that it is none for the NPU."""
    from ai_edge_litert import schema_py_generated as schema

    model = flatbuffer.read(micro / "model.tflite")
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DIV
    code.version = 1
    model.operatorCodes.append(code)
    added = next(op for op in model.subgraphs[0].operators if op.builtinOptionsType == schema.BuiltinOptions.AddOptions)
    added.opcodeIndex, added.builtinOptionsType = len(model.operatorCodes) - 1, schema.BuiltinOptions.DivOptions
    added.builtinOptions = schema.DivOptionsT()
    flatbuffer.write(tmp_path / "divides.tflite", model)
    found = mcu_vela.estimate(tmp_path / "divides.tflite", "ethos-u55-128", *U55)["operators"]
    (on_cpu,) = [each for each in found if each["where"] == "cpu"]
    assert (on_cpu["kind"], on_cpu["cycles"], on_cpu["macs"]) == ("Div", None, None)


def test_an_arena_that_is_too_large_is_said_and_kept(micro: Path) -> None:
    (record,) = bench(micro, "mcu://cortex-m", memory_bytes=10_000)
    assert record.arena is not None and record.failure is not None
    assert (record.failure.kind, record.failure.exit_code) == ("memory", 1)
    assert record.failure.error == (
        f"The arena needs {record.arena['total_bytes']} bytes, more than the 10000 that it may have."
    )


def test_the_table_says_what_is_an_estimate(micro: Path, tmp_path: Path) -> None:
    both = ("--device", "mcu://cortex-m", "--device", "mcu://ethos-u55-128")
    done = run_toolkit("bench", micro, *both, "-o", tmp_path / "records.json")
    assert done.returncode == 0, done.stderr
    assert "cycles, an estimate" in done.stdout
    assert "bytes of arena" in done.stdout
    kinds = [record["kind"] for record in json.loads((tmp_path / "records.json").read_text())]
    assert kinds == ["emulated", "estimated"]


def test_what_cannot_be_is_one_message(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(address: str, *words: str) -> None:
        assert_refused(in_process(["bench", str(micro), "--device", address], capsys), *words)

    refused("mcu://z80", "known: mcu://cortex-m, mcu://ethos-u55-32")
    refused("mcu://cortex-m?system=x", "there is no 'system' to set of it")
    refused("mcu://ethos-u55-64?clock=1", "there is no 'clock' to set of it")
    refused("mcu://ethos-u55-64?memory=plenty", "knows no memory=plenty; it knows Sram_Only, Shared_Sram")
    whole = manifests.read(micro)
    artifact = whole.data["artifact"]
    inputs = [{**artifact["inputs"][0], "dtype": "float32"}]
    half = replace(whole, data={**whole.data, "artifact": {**artifact, "inputs": inputs}})
    with pytest.raises(InputError, match=r"integers alone, and .* is litert int8, with 'pixel_values' in float32"):
        mcu.check(half, "mcu://cortex-m")
    (tmp_path / "bad.tflite").write_bytes(np.random.default_rng(0).bytes(2000))
    with pytest.raises(InputError, match=r"Vela [\d.]+ does not take .*bad\.tflite for ethos-u55-128: "):
        mcu_vela.estimate(tmp_path / "bad.tflite", "ethos-u55-128", *U55)

    def without(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", without)
    with pytest.raises(MissingDependencyError, match=r"'tflite-micro', .*pip install 'edge-deployment-toolkit\[mcu\]'"):
        devices.connect("mcu://ethos-u55-128", Settings(cache=tmp_path))
    assert mcu.state("mcu://cortex-m") == "pip install 'edge-deployment-toolkit[mcu]'"

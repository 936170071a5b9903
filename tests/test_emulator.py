"""Emulated Arm CPUs: real aarch64 builds of the engines, their answers and their instructions."""

from __future__ import annotations

import ctypes
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import run_toolkit
from tests.networks import CLASSES, image_folder, pattern
from tests.refusals import assert_refused, in_process
from toolkit import engines, steps, tasks
from toolkit.bench import run
from toolkit.bench.record import Record
from toolkit.bench.steps import Wanted
from toolkit.devices import Settings, emulator, emulator_setup, native_runner
from toolkit.errors import InputError, MissingDependencyError

NAMES = ("total", "load", "store", "branch", "fma_fp32", "fma_fp16", "widening_int", "dot_int8", "matrix_int8")
# What an assembler makes of instructions, and the class that each is of.
WORDS = {
    0x4E22CC20: "fma_fp32",  # fmla v0.4s, v1.4s, v2.4s
    0x4F821020: "fma_fp32",  # fmla v0.4s, v1.4s, v2.s[0]
    0x4E420C20: "fma_fp16",  # fmla v0.8h, v1.8h, v2.8h
    0x4F021020: "fma_fp16",  # fmla v0.8h, v1.8h, v2.h[0]
    0x0E628020: "widening_int",  # smlal v0.4s, v1.4h, v2.4h
    0x4E628020: "widening_int",  # smlal2 v0.4s, v1.8h, v2.8h
    0x0F422020: "widening_int",  # smlal v0.4s, v1.4h, v2.h[0]
    0x0E22C020: "widening_int",  # smull v0.8h, v1.8b, v2.8b
    0x4E829420: "dot_int8",  # sdot v0.4s, v1.16b, v2.16b
    0x6E829420: "dot_int8",  # udot v0.4s, v1.16b, v2.16b
    0x4F82E020: "dot_int8",  # sdot v0.4s, v1.16b, v2.4b[0]
    0x4E82A420: "matrix_int8",  # smmla v0.4s, v1.16b, v2.16b
    0xF9400020: "load",  # ldr x0, [x1]
    0x3DC00020: "load",  # ldr q0, [x1]
    0xA9400820: "load",  # ldp x0, x2, [x1]
    0x4C407820: "load",  # ld1 {v0.4s}, [x1]
    0x39800020: "load",  # ldrsb x0, [x1]
    0xF9000020: "store",  # str x0, [x1]
    0x3D800020: "store",  # str q0, [x1]
    0x4C007820: "store",  # st1 {v0.4s}, [x1]
    0x14000000: "branch",  # b .
    0x54000000: "branch",  # b.eq .
    0xD65F03C0: "branch",  # ret
    0x8B020020: None,  # add x0, x1, x2
    0x4E22D420: None,  # fadd v0.4s, v1.4s, v2.4s
    0x4EA28420: None,  # add v0.4s, v1.4s, v2.4s
    0xD503201F: None,  # nop
    0xD4000001: None,  # svc #0
}


@pytest.fixture(scope="module", autouse=True)
def ready(cache_folder: Path) -> Path:
    try:
        emulator_setup.tools()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    done = run_toolkit("devices", "setup", "emulator", "--json")
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["folder"])


@pytest.fixture(scope="module")
def artifacts(small_network: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small network for two engines, in float and in int8."""
    folder = tmp_path_factory.mktemp("emulated")
    options = {"data": str(image_folder(folder / "images", 20)), "allow_code": True}
    made = {}
    for engine in ("litert", "onnxruntime"):
        fp32, int8 = (folder / f"{engine} {precision}" for precision in ("fp32", "int8"))
        steps.export(str(small_network), str(fp32), engine=engine, lengths=[1], allow_code=True)
        steps.quantize(str(fp32), str(int8), method="static-int8", options=options)
        made |= {fp32.name: fp32, int8.name: int8}
    return made


def inputs_of(folder: Path) -> list[Any]:
    described = json.loads((folder / "artifact.json").read_text())
    encoder = tasks.get("image-classification").encoder(folder, {}, inputs=[described["inputs"][0]["name"]])
    generator = np.random.default_rng(3)
    return [encoder(pattern(kind, generator)) for kind in CLASSES]


def counted(folder: Path, cpu: str, cache: Path, examples: int = 1) -> tuple[list[emulator.Counted], list[Any]]:
    """What an artifact does on an emulated CPU and what it answers here."""
    engine, described = folder.name.split()[0], json.loads((folder / "artifact.json").read_text())
    inputs = inputs_of(folder)[:examples]
    found = emulator.connect(f"emulator://{cpu}", Settings(cache)).count(engine, folder / described["path"], inputs)
    here = engines.get(engine).load(folder / described["path"])
    return found, [here.run(each) for each in inputs]


def test_instructions_are_told_apart(tmp_path: Path) -> None:
    stubs, library = tmp_path / "stubs.c", tmp_path / "counter.so"
    names = (
        "tb_n_insns", "tb_get_insn", "insn_data", "register_vcpu_tb_trans_cb", "register_vcpu_tb_exec_inline",
        "register_vcpu_syscall_cb",
    )  # fmt: skip
    stubs.write_text("".join(f"void qemu_plugin_{name}(void) {{}}\n" for name in names))
    sources = [str(emulator_setup.COUNTER), str(stubs)]
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(library), *sources], check=True)
    classify = ctypes.CDLL(str(library)).classify
    classify.restype, classify.argtypes = None, [ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint64)]
    for word, name in WORDS.items():
        counts = (ctypes.c_uint64 * len(NAMES))()
        classify(word, counts)
        found = {key: value for key, value in zip(NAMES, counts, strict=True) if value}
        assert found == {"total": 1, **({name: 1} if name else {})}, hex(word)


def test_a_cpu_shows_its_own_instruction_sets(cache_folder: Path) -> None:
    old, new = (
        emulator.connect(f"emulator://{cpu}", Settings(cache_folder)).describe() for cpu in ("cortex-a53", "cortex-a76")
    )
    assert "asimddp" in new["isa"]
    assert "asimddp" not in old["isa"]
    assert (old["kind"], old["cpu_model"], old["architecture"]) == ("emulated", "Cortex-A53", "aarch64")


@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a72", "cortex-a76"])
def test_int8_answers_are_those_of_this_machine_to_the_last_bit(
    cpu: str, artifacts: dict[str, Path], cache_folder: Path
) -> None:
    found, here = counted(artifacts["litert int8"], cpu, cache_folder, examples=3)
    for each, said in zip(found, here, strict=True):
        assert each.answers.keys() == said.keys()
        assert all(np.array_equal(each.answers[name], said[name]) for name in said)
    kernels = found[0].instructions
    assert kernels["dot_int8" if cpu == "cortex-a76" else "widening_int"] > 0
    assert (kernels["dot_int8"] > 0) == (cpu == "cortex-a76")


def test_float_answers_are_within_rounding_and_counts_repeat(artifacts: dict[str, Path], cache_folder: Path) -> None:
    counts = []
    for _ in range(2):
        found, here = counted(artifacts["onnxruntime fp32"], "cortex-a72", cache_folder)
        (said,), (wanted,) = found[0].answers.values(), here[0].values()
        assert said == pytest.approx(wanted, abs=1e-5)
        counts.append(found[0].instructions)
    assert counts[0]["total"] == pytest.approx(counts[1]["total"], rel=0.005)
    assert counts[0]["fma_fp32"] == counts[1]["fma_fp32"] > 1000


def test_integers_take_fewer_instructions_where_the_cpu_has_dot_products(
    artifacts: dict[str, Path], cache_folder: Path
) -> None:
    old, new = (
        counted(artifacts["litert int8"], cpu, cache_folder)[0][0].instructions["total"]
        for cpu in ("cortex-a53", "cortex-a76")
    )
    assert new < old


def test_a_bundle_is_counted(bundle: Path, tmp_path: Path) -> None:
    record_file = tmp_path / "record.json"
    done = run_toolkit("bench", bundle, "--device", "emulator://cortex-a76", "-o", record_file)
    assert done.returncode == 0, done.stderr
    assert "A count of instructions, not a time." in done.stdout
    record = Record.model_validate_json(record_file.read_text())
    assert (record.kind, record.protocol.name, record.protocol.examples) == ("emulated", "count", 3)
    assert record.latency is None
    assert record.instructions is not None
    assert record.instructions["total"] > 1e6
    assert record.answers is not None
    assert record.answers["largest_difference"] < 0.05


def test_devices_are_listed() -> None:
    found = {each["device"]: each["state"] for each in json.loads(run_toolkit("devices", "list", "--json").stdout)}
    assert found["local"] == "ready"
    assert {found[f"emulator://{cpu}"] for cpu in emulator.CPUS} == {"ready"}
    assert {f"emulator://{cpu}?mode=system" for cpu in emulator.CPUS} < set(found)
    assert {"mcu://cortex-m", "mcu://ethos-u55-128"} < set(found)


def test_what_cannot_be_is_one_message(
    bundle: Path, artifacts: dict[str, Path], cache_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def bench(*more: str) -> Any:
        return in_process(["bench", str(bundle), *more], capsys)

    assert_refused(bench("--device", "emulator://z80"), "known: emulator://cortex-a53, emulator://cortex-a72")
    (record,) = run.bench(str(bundle), ["emulator://cortex-a53"], Wanted(threads=2), Settings(cache_folder))
    assert record.failure is not None
    assert "counted on one thread" in record.failure.error
    done = bench("--device", "emulator://cortex-a53", "--cache-dir", str(tmp_path / "empty"))
    assert done.returncode == 3
    assert "toolkit devices setup emulator" in done.stderr
    damaged = tmp_path / "model.tflite"
    damaged.write_bytes(b"\0" * 1000)
    device = emulator.connect("emulator://cortex-a53", Settings(cache_folder))
    with pytest.raises(InputError, match=r"litert cannot run .*model\.tflite"):
        device.count("litert", damaged, inputs_of(artifacts["litert int8"]))
    with pytest.raises(InputError, match=r"did not end within 0\.5 s"):
        device.python(["-c", "while True: pass"], timeout_seconds=0.5)


def test_without_the_programs_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="apt-get install apt dpkg gcc qemu-user"):
        emulator_setup.tools()


def test_a_setup_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(emulator_setup, "_PACKAGES", ("there-is-no-such-package",))
    with pytest.raises(MissingDependencyError, match="downloading packages for arm64: E: Unable to locate package"):
        emulator_setup.setup(tmp_path)
    assert list((tmp_path / "devices").iterdir()) == []


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program for devices without Python."""
    try:
        return native_runner.build(tmp_path_factory.mktemp("program") / "native_runner", flags=["-O0"])
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["litert fp32", "litert int8", "onnxruntime fp32", "onnxruntime int8"])
def test_the_program_without_python_answers_as_here(
    name: str, program: Path, ready: Path, artifacts: dict[str, Path], cache_folder: Path, tmp_path: Path
) -> None:
    folder, engine = artifacts[name], name.split()[0]
    model = folder / json.loads((folder / "artifact.json").read_text())["path"]
    inputs = inputs_of(folder)
    native_runner.write_inputs(tmp_path / "inputs", engine, model, inputs)
    (tmp_path / "answers").mkdir()
    device = emulator.connect("emulator://cortex-a72", Settings(cache_folder))
    library = native_runner.library(ready / "site-packages", engine)

    def run(**step: Any) -> Any:
        arguments = native_runner.arguments(
            step, engine=engine, library=str(library), model=str(model), inputs=str(tmp_path / "inputs"), threads=1,
            answers=str(tmp_path / "answers"),
        )  # fmt: skip
        done = device.program(str(program), arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert run(what="answers")["examples"] == len(inputs)
    here = engines.get(engine).load(model)
    for found, given in zip(native_runner.read_answers(tmp_path / "answers", engine, model), inputs, strict=True):
        for key, expected in here.run(given).items():
            np.testing.assert_allclose(found[key], expected, rtol=0, atol=1e-5)
            assert "int8" not in name or engine != "litert" or np.array_equal(found[key], expected)
    if name == "litert int8":  # the other steps once
        assert run(what="start")["load_s"] > 0
        assert len(run(what="times", rounds=2, seconds=0.01, queries=4)["rounds"]) == 2

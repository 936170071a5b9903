"""Benchmarks on devices behind adb: a real adbd with an emulated Arm CPU, and what goes wrong. There is no Android
here: what one says of itself are recordings."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toolkit
from tests.adbd import ADDRESS, PORT, SERIAL, Adbd, plugged
from tests.conftest import run_toolkit
from tests.progress import on
from tests.refusals import assert_refused, in_process
from tests.test_onnx_file import small, written
from toolkit import kernels
from toolkit.bench import run
from toolkit.bench.record import Record
from toolkit.bench.steps import Wanted
from toolkit.devices import (
    Settings,
    adb,
    adb_client,
    adb_facts,
    adb_program,
    benchmark_model,
    emulator_setup,
    native_runner,
)
from toolkit.errors import InputError, MissingDependencyError
from toolkit.export import flatbuffer
from toolkit.kernels import Kernel
from toolkit.runtime import manifest as manifests
from toolkit.storage import sha256_file

WAIT_SECONDS = 20
# `adb devices`, as it is with telephones that are there and may not be used.
LISTED = """* daemon not running; starting now at tcp:5037
* daemon started successfully
List of devices attached
0a388e93\tunauthorized
emulator-5554\toffline
HT85G1A05551\tno permissions (user in plugdev group; are your udev rules wrong?); see [http://developer.android.com]
R58M123ABC\trecovery
HT7180200125\tdevice

"""
# `getprop` of a Pixel 6 Pro (github.com/badabing2005/PixelFlasher/issues/60), a part of it.
PROPERTIES = """[ro.product.manufacturer]: [Google]
[ro.product.model]: [Pixel 6 Pro]
[ro.product.cpu.abi]: [arm64-v8a]
[ro.build.version.release]: [13]
[ro.build.version.sdk]: [33]
[ro.serialno]: [1A011FDEE006UW]
[ro.setupwizard.esim_cid_ignore]: [00000001]
[ro.sf.lcd_density]: [560]
[ro.soc.manufacturer]: [Google]
[ro.soc.model]: [Tensor]
"""
CORES = "".join(
    f"processor\t: {number}\nFeatures\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp asimddp\n"
    f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {part}\n\n"
    for number, part in enumerate(["0xd05"] * 4 + ["0xd0b"] * 2 + ["0xd44"] * 2)
)
# `dumpsys battery` of a Galaxy (gh0st.tistory.com/6), `dumpsys thermalservice` of a Shield
# (github.com/bryanroscoe/shield_optimizer/issues/6).
BATTERY = """Current Battery Service state:
  mBootCompleted: true
  AC powered: false
  USB powered: true
  Wireless powered: false
  Max charging current: 0
  status: 2
  health: 2
  present: true
  level: 84
  scale: 100
  voltage: 4063
  temperature: 326
  technology: Li-ion
"""
THERMAL = """IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 1
\tkilled: false
Thermal Status: 0
Cached temperatures:
\tTemperature{mValue=36.0, mType=1, mName=GPU, mStatus=0}
\tTemperature{mValue=37.0, mType=0, mName=CPU0, mStatus=0}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{mValue=66.5, mType=0, mName=CPU0, mStatus=0}
"""
# What benchmark_model said on a telephone (github.com/tensorflow/tensorflow/issues/42507).
SAID = """STARTING!
Log parameter values verbosely: [0]
Num threads: [4]
Graph: [/data/local/tmp/espcn_harmonic_2x_slim_w_cl.tflite]
#threads used for CPU inference: [4]
Loaded model /data/local/tmp/espcn_harmonic_2x_slim_w_cl.tflite
The input model file size (MB): 0.004448
Initialized session in 0.855ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=15 first=49060 curr=33682 min=32825 max=49060 avg=34825.1 std=3930

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=32891 curr=33978 min=32641 max=34005 avg=33209.4 std=450

Inference timings in us: Init: 855, First inference: 49060, Warmup (avg): 34825.1, Inference (avg): 33209.4
Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory \
footprint of the model at runtime. Take the information at your discretion.
Peak memory footprint (MB): init=0 overall=12.8672
"""
PHONE = adb_facts.Facts(
    "Google Pixel 6 Pro", "Google Pixel 6 Pro", "Google Tensor", "8 cores", "aarch64", "arm64-v8a", [], [0], 12.0,
    "Android 13", True, None,
)  # fmt: skip


# --- without a device


def test_what_an_android_says_of_itself() -> None:
    said = f"@properties\n{PROPERTIES}@system\nLinux 5.10.149\n@machine\naarch64\n@linker\n/system/bin/linker64\n"
    said += "@allowed\n0-7\n@memory\nMemTotal:       11839880 kB\n@self\n b7 00\n@kernel\n b7 00\n"
    facts = adb_facts.read(f"{said}@program\n/system/bin/toybox\n@cpu\n{CORES}")
    assert (facts.title, facts.system) == ("Google Pixel 6 Pro (Google Tensor)", "Android 13 (API 33), Linux 5.10.149")
    assert (facts.architecture, facts.abi, facts.android, facts.emulated_by) == ("aarch64", "arm64-v8a", True, None)
    assert facts.cpu == "4x Cortex-A55 + 2x Cortex-A76 + 2x Cortex-X1"
    assert (facts.cores, facts.ram_gb) == (list(range(8)), 12.1)
    assert "asimddp" in facts.isa
    assert adb_facts.read(f"{said}@program\n/usr/bin/qemu-aarch64\n").emulated_by == "qemu-aarch64"
    assert adb_facts.read(said.replace("@kernel\n b7", "@kernel\n 3e")).emulated_by == "another program"
    assert (
        adb_facts.read(said.replace("[ro.serialno]", "[ro.boot.qemu]: [1]\n[x]")).emulated_by == "the Android emulator"
    )
    nothing = adb_facts.read("@properties\n@system\n@machine\n@linker\n@cpu\n")
    assert {nothing.model, nothing.soc, nothing.cpu, nothing.architecture, nothing.ram_gb} == {"not available"}


def test_battery_and_heat_are_told() -> None:
    zone = "/sys/class/thermal/thermal_zone0"
    state = adb_facts.read_state(
        f"/proc/loadavg 2.50 2.25 2.00 1/2000 1\n{zone}/type BIG\n{zone}/temp 66500\n@battery\n{BATTERY}"
        f"@thermalservice\n{THERMAL}"
    )
    assert (state["load_average"], state["temperature_c"]) == ([2.5, 2.25, 2.0], {"BIG": 66.5})
    assert state["battery"] == {
        "level_percent": 84, "status": "charging", "powered_by": ["USB"], "temperature_c": 32.6, "voltage_mv": 4063,
    }  # fmt: skip
    assert state["thermal"] == {"status": "none", "temperature_c": {"GPU": 36.0, "CPU0": 66.5}}
    assert state["throttled"] is None
    hot = adb_facts.read_state(f"@battery\n@thermalservice\n{THERMAL.replace('Status: 0', 'Status: 3')}")
    assert hot["throttled"] == {"now": ["thermal status severe"]}
    assert hot["battery"] is None
    assert adb_facts.read_state("@battery\n@thermalservice\n")["thermal"] is None


def test_what_benchmark_model_tells_is_all_that_is_known() -> None:
    told = benchmark_model.read(SAID)
    assert told == {
        "count": 50, "min_ms": 32.641, "max_ms": 34.005, "mean_ms": pytest.approx(33.2094), "std_ms": 0.45,
        "init_ms": 0.855, "first_inference_ms": 49.06, "warm_up_mean_ms": pytest.approx(34.8251), "init_mb": 0.0,
        "overall_mb": 12.8672,
    }  # fmt: skip
    newer = SAID.replace("std=450", "std=450 p5=32700 median=33100 p95=33900")
    assert {**told, "p5_ms": 32.7, "median_ms": 33.1, "p95_ms": 33.9} == benchmark_model.read(newer)
    same = benchmark_model.read("INFO: count=3 curr=12(all same)")
    assert same == {"count": 3, "min_ms": 0.012, "max_ms": 0.012, "mean_ms": 0.012}
    with pytest.raises(InputError, match="told of no inference"):
        benchmark_model.read("ERROR: Failed to open model\n")
    step = {"what": "times", "seconds": 200, "queries": 50}
    assert benchmark_model.arguments(step, "m.tflite", 2)[1:] == [
        "--num_threads=2", "--num_runs=50", "--min_secs=200", "--max_secs=400",
    ]  # fmt: skip
    assert benchmark_model.on_cores(["x"], (4, 7)) == ["taskset", "90", "x"]


def test_devices_that_cannot_be_used_are_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adb").write_text(
        f'#!/bin/sh\ncase "$*" in devices) cat <<"E"\n{LISTED}E\n;; *) echo shell_v1;; esac\n'
    )
    (tmp_path / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for serial, code, words in (
        ("0a388e93", 3, "does not trust this machine yet"),
        ("emulator-5554", 3, "plug it in anew"),
        ("HT85G1A05551", 3, "may not be used by you on this machine (no permissions)"),
        ("R58M123ABC", 3, "is in the state 'recovery'"),
        ("HT7180200125", 3, "no shell_v2"),
        ("192.168.0.7:5555", 3, "connected by `adb connect 192.168.0.7:5555`"),
        ("", 2, "several devices are connected, 0a388e93, emulator-5554"),
        ("-e", 2, "is no device"),
        ("a?kind=real", 2, "behind the ? there may be kind=emulated"),
    ):
        with pytest.raises((InputError, MissingDependencyError)) as caught:
            adb.connect(f"adb://{serial}", Settings(tmp_path))
        assert words in str(caught.value)
        assert caught.value.exit_code == code
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(MissingDependencyError, match=r"There is no adb on this machine.*apt-get install adb"):
        adb_client.find("x")


def elf(machine: int, *more: bytes) -> bytes:
    return b"\x7fELF\x02\x01" + bytes(12) + machine.to_bytes(2, "little") + b"".join(more)


def test_the_library_is_the_one_for_the_device(tmp_path: Path) -> None:
    aar, wheel = tmp_path / "onnxruntime-android.aar", tmp_path / "onnxruntime.whl"
    with zipfile.ZipFile(aar, "w") as archive:
        for abi, machine in (("x86_64", 62), ("arm64-v8a", 183)):
            archive.writestr(f"jni/{abi}/libonnxruntime.so", elf(machine, abi.encode()))
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("onnxruntime/capi/libonnxruntime.so.1.31.1", elf(183, b"GLIBC_2.27"))
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()

    def found(given: Path | None, facts: adb_facts.Facts = PHONE, engine: str = "onnxruntime") -> bytes:
        settings = Settings(tmp_path, library=given)
        return adb_program.library(settings, engine, facts, "adb://x", unpacked).read_bytes()

    linux = replace(PHONE, android=False)
    assert found(aar).endswith(b"arm64-v8a")
    assert found(aar, replace(PHONE, architecture="x86_64")).endswith(b"x86_64")
    assert found(wheel, linux).endswith(b"GLIBC_2.27")
    with pytest.raises(InputError, match="is built for Linux with glibc, and adb://x is an Android"):
        found(wheel)
    with pytest.raises(InputError, match=r"holds no libLiteRt\.so for aarch64"):
        found(aar, engine="litert")
    with pytest.raises(
        MissingDependencyError, match=r"needs ONNX Runtime's library for arm64-v8a\. Name the archive of"
    ):
        found(None)
    with pytest.raises(MissingDependencyError, match=r"needs LiteRT's library for aarch64\. Name its wheel"):
        found(None, linux, "litert")
    single = tmp_path / "libonnxruntime.so"
    single.write_bytes(elf(62))
    with pytest.raises(InputError, match="is for x86_64, and adb://x has aarch64"):
        found(single)
    wheel.write_bytes(b"no archive")
    with pytest.raises(InputError, match="is no archive that can be read"):
        found(wheel, linux)
    folder = tmp_path / "libraries"
    (folder / "arm64-v8a").mkdir(parents=True)
    (folder / "arm64-v8a" / "libonnxruntime.so").write_bytes(elf(183, b"of a folder"))
    assert found(folder).endswith(b"of a folder")


def test_the_program_is_one_for_the_device(tmp_path: Path) -> None:
    def program(facts: adb_facts.Facts, **settings: Any) -> Path:
        return adb_program.program(Settings(tmp_path, **settings), facts, "adb://x")

    with pytest.raises(MissingDependencyError, match=r"its NDK.*--compiler …/.*/aarch64-linux-android26-clang\+\+"):
        program(PHONE)
    with pytest.raises(MissingDependencyError, match="There is no compiler no-such-compiler"):
        program(PHONE, compiler="no-such-compiler")
    with pytest.raises(MissingDependencyError, match="has the processor riscv64; name a compiler"):
        program(replace(PHONE, android=False, architecture="riscv64"))
    own = tmp_path / "benchmark_model"
    own.write_bytes(elf(62))
    with pytest.raises(InputError, match=r"--runner .* is for x86_64, and adb://x has aarch64"):
        program(PHONE, runner=own)
    own.write_bytes(elf(183))
    assert program(PHONE, runner=own) == own
    assert adb_program.kind_of(Settings(tmp_path, runner=own)) == "benchmark_model"
    own.write_text("hello")
    with pytest.raises(InputError, match="is no program or library for Linux"):
        program(PHONE, runner=own)
    with pytest.raises(InputError, match=r"--library .*nowhere: there is no such file"):
        adb_program.check_options(Settings(tmp_path, library=tmp_path / "nowhere"))
    with pytest.raises(InputError, match="leave --compiler out"):
        adb_program.check_options(Settings(tmp_path, runner=own, compiler="c++"))


# --- a real adbd


@pytest.fixture(scope="module")
def phone(cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adbd]:
    if shutil.which(native_runner.COMPILER) is None:
        pytest.skip(f"{native_runner.COMPILER} is not installed")
    with plugged(tmp_path_factory.mktemp("adbd") / "device", cache_folder) as device:
        path = os.environ["PATH"]
        os.environ["PATH"] = f"{device.adb.parent}:{path}"
        yield device
        os.environ["PATH"] = path


@pytest.fixture
def device(phone: Adbd) -> Iterator[Adbd]:
    """That device, on which nothing may be left."""
    yield phone
    assert phone.left() == []
    assert phone.running() == []


@pytest.fixture
def as_if_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device as one that is not seen to be emulated: it is measured, though the numbers mean nothing."""
    monkeypatch.setattr(adb_facts, "_emulated_by", lambda *_: None)


@pytest.fixture(scope="module")
def libraries(cache_folder: Path) -> Path:
    return emulator_setup.guest_folder(cache_folder) / "site-packages"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one product of matrices: it is not what is measured that matters here."""
    folder = tmp_path_factory.mktemp("small")
    rows = folder / "rows"
    rows.mkdir()
    generator = np.random.default_rng(0)
    for number in range(12):
        np.savez(rows / f"{number:02d}.npz", x=generator.normal(size=(1, 4)).astype(np.float32))
    model = written(small(), folder / "m.onnx")
    return Path(toolkit.convert(str(model), data=str(rows), output=str(folder / "b")).path)


@pytest.fixture(scope="module")
def made_for_litert(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with another product in a LiteRT file, whose runtime is smaller and starts faster."""
    folder = tmp_path_factory.mktemp("litert") / "b"
    shutil.copytree(made, folder)
    artifact = folder / "model.tflite"
    kernels.get("litert").write(Kernel("gemm", "FULLY_CONNECTED", "fp32", (1, 4, 16), 2), artifact, 0)
    model = flatbuffer.read(artifact)
    model.signatureDefs[0].inputs[0].name = b"x"
    flatbuffer.write(artifact, model)
    data = json.loads((folder / "manifest.json").read_text())
    data["engine"] |= {"name": "litert", "minimum_versions": {}}
    size = artifact.stat().st_size
    data["artifact"] |= {
        "path": artifact.name, "size_bytes": size, "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 4]}],
    }  # fmt: skip
    del data["files"]["model.onnx"]
    data["files"][artifact.name] = {"bytes": size, "sha256": sha256_file(artifact)}
    data["content_hash"] = manifests.content_hash(data)
    (folder / "manifest.json").write_text(json.dumps(data))
    return folder


@pytest.fixture(scope="module")
def settings(cache_folder: Path, libraries: Path) -> Settings:
    return Settings(cache_folder, library=libraries)


@contextlib.contextmanager
def reached(settings: Settings, **more: Any) -> Iterator[adb.AdbDevice]:
    device = adb.connect(ADDRESS, replace(settings, **more))
    try:
        yield device
    finally:
        device.close()


def measured(device: adb.AdbDevice, bundle: Path, *what: dict[str, Any], **shared: Any) -> list[dict[str, Any]]:
    """Steps with two of the bundle's examples."""
    place = device.push(bundle, "bundle")
    examples = [{"file": "01.npz"}, {"file": "02.npz"}]
    step = {"bundle": place, "examples": examples, "threads": 1, "seed": 0, **shared}
    return [{**step, **each} for each in what]


START: dict[str, Any] = {"what": "start", "cold": False}
LONG: dict[str, Any] = {"what": "times", "rounds": 1, "seconds": 60, "queries": 1}


def test_an_emulated_device_gives_answers_and_no_times(
    made: Path, device: Adbd, libraries: Path, cache_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "record.json"
    done = run_toolkit("bench", made, "--device", ADDRESS, "--library", libraries, "-o", output)
    assert done.returncode == 0, done.stderr
    record = Record.model_validate_json(output.read_text())
    assert (record.kind, record.clock, record.protocol.name) == ("emulated", "none: answers are compared", "answers")
    facts = record.device.facts
    assert (facts["architecture"], facts["emulated_by"], facts["device"]) == ("aarch64", "qemu-aarch64", "emulated")
    assert facts["cpu_model"] == "Cortex-A76"
    assert "asimddp" in facts["isa"]
    assert {facts["soc"], facts["battery"], facts["thermal"], facts["abi"]} == {"not available"}
    assert record.answers is not None
    assert record.answers["examples"] == 3
    assert record.answers["largest_difference"] < 1e-5
    for part in (record.latency, record.throughput_per_s, record.cold_start, record.warm_start, record.memory):
        assert part is None
    assert "emulated" in done.stdout
    assert " ms" not in done.stdout
    # It was built for this device, and may be named to others.
    (program,) = (cache_folder / "devices").glob("native-*/native_runner")
    assert adb_program.kind_of(Settings(tmp_path, runner=program)) == "native_runner"


def test_a_record_of_a_device_is_like_that_of_others(
    made_for_litert: Path, device: Adbd, settings: Settings, as_if_real: None
) -> None:
    for name, said in (("getprop", PROPERTIES), ("dumpsys", BATTERY)):
        (device.bin / name).write_text(f"#!/system/bin/sh\ncat <<'E'\n{said}E\n")
        (device.bin / name).chmod(0o755)
    wanted = Wanted(seconds=0.2, starts=1)
    try:
        (record,) = run.bench(str(made_for_litert), [ADDRESS], wanted, replace(settings, cores=(0,)))
    finally:
        for path in device.bin.iterdir():
            path.unlink()
    assert (record.kind, record.failure, record.clock) == ("measured", None, "CLOCK_MONOTONIC of the program")
    assert set(record.parts) == {"inference"}
    for part in (record.latency, record.cold_start, record.warm_start, record.memory, record.noise):
        assert part is not None
    assert record.cold_start is not None
    assert record.cold_start.resident is None
    assert record.cold_start.process_ms > 0
    assert (record.protocol.examples, record.protocol.cores, record.protocol.rounds) == (8, [0], 8)
    assert record.answers is not None
    assert record.answers["largest_difference"] < 1e-5
    assert (record.device.title, record.device.facts["soc"]) == ("Google Pixel 6 Pro (Google Tensor)", "Google Tensor")
    assert record.device.facts["battery"]["level_percent"] == 84
    assert record.conditions["before"]["load_average"] is not None
    assert record.conditions["after"]["battery"]["temperature_c"] == 32.6


def test_only_what_changed_is_sent_again(made_for_litert: Path, device: Adbd, settings: Settings) -> None:
    kept = device.tmp / "toolkit-bench"

    def written() -> dict[str, int]:
        return {str(path.relative_to(kept)): path.stat().st_ctime_ns for path in kept.rglob("*") if path.is_file()}

    def ran() -> dict[str, int]:
        with reached(settings, keep=True) as device:
            outcome = device.run(measured(device, made_for_litert, {"what": "answers"}), lambda *_: None)
            assert outcome.failed is None
        return written()

    before = ran()
    inputs = {name for name in before if name.startswith("inputs-")}
    assert set(before) - inputs == {"bundle/model.tflite", "program/native_runner", "program/liblitert.so"}
    assert len(inputs) == 3
    changed = sorted(inputs)[0]
    (kept / changed).write_bytes(b"changed")
    (kept / "bundle" / "of another").write_text("bundle")
    after = ran()
    assert set(after) == set(before)
    again = {name for name in after if after[name] != before[name]}
    assert again == {changed}
    shutil.rmtree(kept)


def test_a_users_own_program_is_run(
    made: Path, made_for_litert: Path, device: Adbd, tmp_path: Path, as_if_real: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "benchmark_model"
    own.write_text(
        f'#!/system/bin/sh\n[ "$2" = --num_threads=1 ] && [ -f "${{1#--graph=}}" ] && cat <<\'E\'\n{SAID}E\n'
    )
    settings = Settings(tmp_path, runner=own)
    (record,) = run.bench(str(made_for_litert), [ADDRESS], Wanted(threads=1), settings)
    assert record.failure is None
    assert record.told is not None
    assert record.told["mean_ms"] == pytest.approx(33.2094)
    assert (record.latency, record.memory, record.cold_start, record.protocol.examples) == (None, None, None, 0)
    (record,) = run.bench(str(made_for_litert), [ADDRESS], Wanted(threads=2), settings)
    assert record.failure is not None
    assert "'times' ended with code 1" in record.failure.error
    with pytest.raises(InputError, match="benchmark_model runs LiteRT's files"):
        run.bench(str(made), [ADDRESS], Wanted(), settings)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{device.adb.parent}:{os.environ['PATH']}")
    with pytest.raises(InputError, match=r"is emulated .* and benchmark_model tells nothing else"):
        adb.connect(ADDRESS, settings)


def test_what_does_not_fit_the_device_is_refused(
    made: Path, device: Adbd, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    done = in_process(["bench", str(made), "--device", ADDRESS, "--memory", "64MB"], capsys)
    assert_refused(done, "--memory", "takes no limit")
    with pytest.raises(InputError, match="has no core 999 to use; it has 0"), reached(settings, cores=(999,)):
        pass
    device.call("connect", f"localhost:{PORT}")
    try:
        with pytest.raises(InputError, match=rf"several devices are connected, {SERIAL}, localhost:{PORT}; say which"):
            adb.connect("adb://", settings)
    finally:
        device.call("disconnect", f"localhost:{PORT}")
    found = adb.connect("adb://", settings)
    found.close()
    assert found.address == ADDRESS


# --- what goes wrong on the way


def test_a_device_that_is_unplugged_keeps_what_was_measured(
    made_for_litert: Path, phone: Adbd, settings: Settings, as_if_real: None
) -> None:
    with pytest.warns(UserWarning, match=r"toolkit-bench-.* may be left there"), reached(settings) as device:
        steps = measured(device, made_for_litert, START, LONG, {"what": "answers"})
        outcome = device.run(steps, on("warming up", phone.unplug))
        facts = device.describe()
    assert outcome.failed is not None
    assert (outcome.failed["kind"], outcome.failed["exit_code"]) == ("connection", 3)
    assert f"{ADDRESS} was lost" in outcome.failed["error"]
    assert outcome.results[0] is not None
    assert outcome.results[1:] == [None, None]
    assert facts["architecture"] == "aarch64"
    with pytest.raises(MissingDependencyError, match=r"does not answer \(offline\): plug it in anew"):
        adb.connect(ADDRESS, settings)
    phone.plug()
    until(lambda: not phone.running())  # it ended by itself: there is nobody to tell its progress to
    for name in phone.left():
        shutil.rmtree(phone.tmp / name)


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)
    return found


def test_a_device_that_falls_silent_is_lost(
    made_for_litert: Path, device: Adbd, settings: Settings, as_if_real: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    adbd = device.running("/usr/lib/android-sdk/platform-tools/adbd")

    def signalled(number: int) -> None:
        for process in [*adbd, *device.running()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    with reached(settings) as reached_device:
        steps = measured(reached_device, made_for_litert, START, LONG)
        for name in ("SILENT_SECONDS", "ANSWER_SECONDS"):
            monkeypatch.setattr(adb_client, name, 0.5)
        try:
            outcome = reached_device.run(steps, on("warming up", lambda: signalled(signal.SIGSTOP)))
        finally:
            signalled(signal.SIGCONT)
            monkeypatch.setattr(adb_client, "ANSWER_SECONDS", 20.0)
    assert outcome.failed is not None
    assert outcome.failed["kind"] == "connection"
    assert "did not answer within 0.5 s" in outcome.failed["error"]
    assert outcome.results[0] is not None


def test_programs_that_do_not_end_well_are_told_apart(
    made_for_litert: Path, device: Adbd, settings: Settings, as_if_real: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(number: int) -> None:
        for process in device.running("program/native_runner times"):
            os.kill(process, number)

    monkeypatch.setattr(adb, "HUNG_SECONDS", 1.0)
    with reached(settings) as found:
        for step, action, kind, said in (
            ({**LONG, "timeout_seconds": 1}, lambda: None, "timeout", "'times' did not end within 1 s and was ended"),
            ({**LONG, "timeout_seconds": 1}, lambda: signalled(signal.SIGSTOP), "timeout", "was ended"),
            (LONG, lambda: signalled(signal.SIGKILL), "memory", "most likely because the memory ran out"),
        ):
            outcome = found.run(measured(found, made_for_litert, step), on("warming up", action))
            assert outcome.failed is not None
            assert (outcome.failed["kind"], outcome.results) == (kind, [None])
            assert said in outcome.failed["error"]
            assert device.running() == []


def test_a_disk_that_is_full_is_told(made_for_litert: Path, device: Adbd, settings: Settings) -> None:
    with reached(settings) as found:
        steps = measured(found, made_for_litert, {"what": "answers"})
        with contextlib.suppress(OSError), (device.tmp / "filled").open("wb") as stream:
            while True:
                stream.write(b"\0" * (1 << 20))
        with pytest.raises(InputError, match=r"cannot write .* MB to /data/.*: no space is left on the disk there"):
            found.run(steps, lambda *_: None)
    (device.tmp / "filled").unlink()


def test_a_library_that_does_not_load_is_told(
    made_for_litert: Path, device: Adbd, settings: Settings, tmp_path: Path
) -> None:
    broken = tmp_path / "libLiteRt.so"
    broken.write_bytes(elf(183, b"broken"))
    with reached(settings, library=broken) as found:
        outcome = found.run(measured(found, made_for_litert, {"what": "answers"}), lambda *_: None)
    assert outcome.failed is not None
    assert "'answers' ended with code 1: the runtime cannot be loaded" in outcome.failed["error"]


@pytest.mark.parametrize("aside", [False, True], ids=["in this thread", "in a thread beside it"])
def test_ctrl_c_leaves_nothing_there(made_for_litert: Path, device: Adbd, settings: Settings, aside: bool) -> None:
    code = (
        "import sys; from toolkit import cli; from toolkit.devices import adb, adb_facts; "
        "adb_facts._emulated_by = lambda *_: None; "
        f"adb._HERE = adb.re.compile({'x' if aside else '.*'!r}); cli.main(sys.argv[1:])"
    )
    arguments = ["bench", made_for_litert, "--device", ADDRESS, "--seconds", "60", "--library", settings.library]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(toolkit.__file__).parent.parent)},
    )  # fmt: skip
    until(lambda: device.running("program/native_runner start"))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of its foreground
    _, said = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "Warning" not in said

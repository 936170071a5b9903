"""Benchmarks on devices behind ssh: a real sshd on this machine, one whose Python is emulated, and what goes wrong."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement

import toolkit
from tests.conftest import run_toolkit
from tests.progress import on
from tests.sshd import Sshd, serving, serving_arm
from tests.test_onnx_file import small, written
from toolkit.bench import assembly, run
from toolkit.bench.record import ComparisonRecord, Record
from toolkit.bench.steps import Wanted
from toolkit.devices import Settings, cgroup, emulator_setup, local, ssh, wheels
from toolkit.errors import InputError, MissingDependencyError

WAIT_SECONDS = 20


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    generator = np.random.default_rng(0)
    for number in range(30):
        np.savez(folder / f"{number:02d}.npz", x=generator.normal(size=(1, 4)).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def made(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one product of matrices: it is not what is measured that matters here."""
    folder = tmp_path_factory.mktemp("small")
    return Path(
        toolkit.convert(str(written(small(), folder / "m.onnx")), data=str(rows), output=str(folder / "b")).path
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with serving(tmp_path_factory.mktemp("server") / "ssh") as server:
        yield server


@pytest.fixture
def sshd(server: Sshd) -> Iterator[Sshd]:
    """That server, of which nothing may be left."""
    yield server
    assert server.left() == []
    assert processes(server) == {}


@pytest.fixture
def device(sshd: Sshd, tmp_path: Path) -> Iterator[ssh.SshDevice]:
    with reached(sshd, cache=tmp_path) as found:
        yield found


@contextlib.contextmanager
def reached(sshd: Sshd, **settings: Any) -> Iterator[ssh.SshDevice]:
    device = ssh.connect(sshd.address, Settings(**{"cache": sshd.folder, "ssh_config": sshd.config, **settings}))
    try:
        yield device
    finally:
        device.close()


def processes(sshd: Sshd) -> dict[int, str]:
    """What runs out of the folders that were made there."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if f"{sshd.temporary}/toolkit-bench-" in command and "ssh" not in command.split()[0]:
                found[int(path.parent.name)] = command
    return found


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)
    return found


def measured(device: ssh.SshDevice, bundle: Path, *what: dict[str, Any], **shared: Any) -> list[dict[str, Any]]:
    """Steps with one of the bundle's examples."""
    place = device.push(bundle, "bundle")
    step = {"bundle": place, "examples": [{"file": "01.npz"}], "threads": 1, "seed": 0, "timeout_seconds": 60, **shared}
    return [{**step, **each} for each in what]


START: dict[str, Any] = {"what": "start", "cold": False}
LONG: dict[str, Any] = {"what": "sustain", "seconds": 20}


# --- as on this machine


def test_a_record_over_ssh_is_like_one_of_this_machine(made: Path, rows: Path, sshd: Sshd, tmp_path: Path) -> None:
    output = tmp_path / "record.json"
    done = run_toolkit(
        "bench", made, "--device", sshd.address, "--ssh-config", sshd.config, "--seconds", "0.2", "--data", rows,
        "--cores", "0", "-o", output,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = Record.model_validate_json(output.read_text())
    assert (record.kind, record.failure, record.clock) == ("measured", None, "time.perf_counter of the process")
    for part in (record.latency, record.cold_start, record.warm_start, record.memory, record.noise):
        assert part is not None
    assert record.conditions["before"]["load_average"] is not None
    assert (record.protocol.examples, record.protocol.cores) == (30, [0])
    assert record.device.address == sshd.address
    assert record.device.facts["packages"] == "its own"
    assert record.device.fingerprint == assembly.device_of("local", local.describe()).fingerprint
    assert sshd.address in done.stdout


def test_bundles_are_compared_over_ssh(made: Path, sshd: Sshd) -> None:
    pair = ("compare", made, made, "--device", sshd.address, "--ssh-config", sshd.config, "--seconds", "0.5")
    done = run_toolkit(*pair, "--json")
    assert done.returncode == 0, done.stderr
    record = ComparisonRecord.model_validate_json(done.stdout)
    assert record.device.address == sshd.address
    assert len(record.latency) == 2
    (ratio,) = record.ratios
    assert ratio.low < ratio.ratio < ratio.high


def test_only_what_changed_is_sent_again(made: Path, sshd: Sshd, tmp_path: Path) -> None:
    kept = sshd.folder / "toolkit-bench"

    def changed() -> dict[str, int]:
        return {str(path.relative_to(kept)): path.stat().st_ctime_ns for path in kept.rglob("*") if path.is_file()}

    with reached(sshd, keep=True) as device:
        assert device.push(made, "bundle") == str(kept / "bundle")
    before = changed()
    assert {f"bundle/{path.relative_to(made)}" for path in made.rglob("*") if path.is_file()} < set(before)
    (kept / "bundle" / "recipe.yaml").write_text("changed")
    (kept / "toolkit" / "errors.py").unlink()
    (kept / "bundle" / "of another").write_text("bundle")
    with reached(sshd, keep=True) as device:
        device.push(made, "bundle")
        outcome = device.run(measured(device, made, START), lambda *_: None)
    assert outcome.failed is None
    after = {name: when for name, when in changed().items() if "__pycache__" not in name}
    assert {name for name in after if after[name] != before.get(name)} == {
        "bundle/recipe.yaml", "toolkit/errors.py", "asked",
    }  # fmt: skip
    assert "bundle/of another" not in after
    assert not [name for name in after if name.startswith("run-")]
    shutil.rmtree(kept)


def test_what_is_brought_of_the_package_imports_nothing_else_of_it(tmp_path: Path) -> None:
    package = Path(toolkit.__file__).parent
    for file in ssh.package_files():
        (tmp_path / "toolkit" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(package / file, tmp_path / "toolkit" / file)
    modules = [
        f"toolkit.{folder}.{path.stem}" for folder in ("engines", "profilers", "runtime")
        for path in (tmp_path / "toolkit" / folder).glob("*.py") if path.stem not in ("__init__", "torch")
    ]  # fmt: skip
    modules += ["toolkit.bench.measure", "toolkit.devices.detached", "toolkit.devices.remote_setup"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import {', '.join(modules)}"],
        env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# --- its Python


def wheel_of(name: str, folder: Path) -> None:
    """The wheel that a package was installed from, less its tests, and those that it needs."""
    found = importlib.metadata.distribution(name)
    tags = [line.split()[1] for line in (found.read_text("WHEEL") or "").splitlines() if line.startswith("Tag: ")]
    tag = "-".join(".".join(dict.fromkeys(part)) for part in zip(*(tag.split("-") for tag in tags), strict=True))
    path = folder / f"{found.name.replace('-', '_')}-{found.version}-{tag}.whl"
    if path.exists():
        return
    with zipfile.ZipFile(path, "w") as archive:
        for file in found.files or ():
            if ".." not in file.parts and not {"tests", "transformers", "__pycache__"} & set(file.parts):
                archive.write(file.locate(), str(file))
    for requirement in map(Requirement, found.requires or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            wheel_of(requirement.name, folder)


def test_a_python_without_packages_is_given_wheels(made: Path, sshd: Sshd, tmp_path: Path) -> None:
    bare, folder, empty = tmp_path / "bare", tmp_path / "wheels", tmp_path / "empty"
    venv.create(bare, symlinks=True, with_pip=False)
    for each in (folder, empty):
        each.mkdir()
    with reached(sshd, python=str(bare / "bin" / "python"), wheels=empty) as device:
        steps = measured(device, made, START)
        with pytest.raises(MissingDependencyError) as caught:
            device.run(steps, lambda *_: None)
    said = str(caught.value)
    for part in (
        f"{bare}/bin/python cannot run the bundle (No module named 'numpy')", f"{empty} holds no wheels of numpy, onnx",
        "--python", "--wheels",
    ):  # fmt: skip
        assert part in said
    wheel_of("numpy", folder)
    wheel_of("onnxruntime", folder)
    with reached(sshd, python=str(bare / "bin" / "python"), wheels=folder) as device:
        outcome = device.run(measured(device, made, START), lambda *_: None)
        packages = device.describe()["packages"]
    assert outcome.failed is None
    assert [name.partition("-")[0] for name in packages if name.startswith(("numpy", "onnx"))] == [
        "numpy",
        "onnxruntime",
    ]


def test_wheels_are_those_of_the_devices_platform(tmp_path: Path) -> None:
    pi = {"version": [3, 12, 1], "machine": "aarch64", "bits": 64, "glibc": "2.36"}
    names = [path.name for path in wheels.fetch(["pyyaml"], pi, tmp_path, None).iterdir()]
    assert len(names) == 1
    assert "-cp312-cp312-" in names[0]
    assert names[0].endswith("_aarch64.whl")
    assert wheels.platforms({**pi, "bits": 32})[0] == "manylinux_2_36_armv7l"
    assert wheels.platforms({**pi, "glibc": None})[0] == "musllinux_1_2_aarch64"
    with pytest.raises(InputError, match=r"--wheels .*nowhere is not a folder"):
        wheels.fetch(["pyyaml"], pi, tmp_path, tmp_path / "nowhere")


def test_a_device_without_python_is_exit_code_3(made: Path, sshd: Sshd, tmp_path: Path) -> None:
    done = run_toolkit("bench", made, "--device", sshd.address, "--ssh-config", sshd.config, "--python", "python3.99")
    assert done.returncode == 3
    assert (
        f"Error: {sshd.address} has no python3.99 on the PATH of its ssh sessions. A benchmark needs Python 3.11 or "
        in (done.stderr)
    )
    assert "Traceback" not in done.stderr
    facts = {"version": [3, 8, 10], "implementation": "CPython", "system": "Linux"}
    for name, prints, said in (
        ("old", json.dumps(facts), "is Python 3.8.10. A benchmark needs Python 3.11"),
        ("other", json.dumps({**facts, "version": [3, 11, 1], "implementation": "PyPy"}), "is PyPy on Linux"),
        ("none", "hello", "is no Python"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{prints}'\n")
        (tmp_path / name).chmod(0o755)
        with pytest.raises(MissingDependencyError, match=said), reached(sshd, python=str(tmp_path / name)):
            pass


# --- what is refused


def test_a_host_that_is_not_known_is_not_spoken_to(made: Path, sshd: Sshd) -> None:
    known = sshd.known_hosts.read_text()
    other = (sshd.folder / "key.pub").read_text()
    for wrong in ("", f"[127.0.0.1]:{sshd.port} {other}"):
        sshd.known_hosts.write_text(wrong)
        try:
            done = run_toolkit("bench", made, "--device", sshd.address, "--ssh-config", sshd.config)
        finally:
            sshd.known_hosts.write_text(known)
        assert done.returncode == 3
        assert "is not reached: Host key verification failed" in done.stderr
        assert "Traceback" not in done.stderr


def test_what_does_not_fit_the_device_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    settings = Settings(tmp_path, ssh_config=sshd.config, cores=(0, 999))
    with pytest.raises(InputError, match="has no core 999 to use; it has 0"):
        ssh.connect(sshd.address, settings)
    with pytest.raises(InputError, match=r"behind the \? there may be kind=emulated"):
        ssh.connect(f"{sshd.address}?kind=real", settings)
    with pytest.raises(InputError, match="is no device"):
        ssh.connect("ssh://-oProxyCommand=id", settings)


# --- what goes wrong on the way


def test_memory_that_is_not_enough_is_told_with_its_limit(made: Path, sshd: Sshd) -> None:
    try:
        with cgroup.memory(1 << 26):
            pass
    except MissingDependencyError as error:
        pytest.skip(str(error))
    with reached(sshd, memory_bytes=20_000_000) as device:
        outcome = device.run(measured(device, made, START), lambda *_: None)
    assert outcome.failed is not None
    assert outcome.failed["kind"] == "memory"
    assert "needs more than the 20 MB that it may have" in outcome.failed["error"]


def test_a_connection_that_comes_back_is_followed_on(
    made: Path, device: ssh.SshDevice, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "RETRY_SECONDS", 0.1)
    cut, mend = on("sustain", sshd.stop), on("trying again", sshd.start)
    told: list[str] = []

    def progress(*said: Any) -> None:
        told.append(said[2])
        cut(*said)
        mend(*said)

    outcome = device.run(measured(device, made, START, {**LONG, "seconds": 1.5}, START), progress)
    assert outcome.failed is None
    assert all(result is not None for result in outcome.results)
    assert "the connection was lost; trying again" in told


def test_a_runner_that_is_lost_with_the_connection_goes_on_where_it_was(
    made: Path, device: ssh.SshDevice, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "RETRY_SECONDS", 0.1)
    first: list[Path] = []

    def started_anew() -> None:
        """As far as its processes go."""
        sshd.stop()
        for process in processes(sshd):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        first.extend(sshd.temporary.glob("*/run-*/step-0.json"))
        first[0].touch()
        os.utime(first[0], (1, 1))
        sshd.start()

    outcome = device.run(measured(device, made, START, {**LONG, "seconds": 1.5}), on("sustain", started_anew))
    assert outcome.failed is None
    assert all(result is not None for result in outcome.results)
    assert first[0].stat().st_mtime == 1  # what had ended was not run again


def test_a_device_that_does_not_come_back_keeps_what_was_measured(
    made: Path, server: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("RETRY_SECONDS", 0.1), ("RECONNECT_SECONDS", 0.5), ("LEASE_SECONDS", 3.0)):
        monkeypatch.setattr(ssh, name, seconds)
    try:
        with pytest.warns(UserWarning, match="toolkit-bench-.* may be left there"), reached(server) as device:
            outcome = device.run(measured(device, made, START, LONG), on("sustain", server.stop))
    finally:
        assert processes(server)
        server.start()
    assert outcome.failed is not None
    assert (outcome.failed["kind"], outcome.failed["exit_code"]) == ("connection", 3)
    assert "is not reached" in outcome.failed["error"]
    assert outcome.results[0] is not None
    assert outcome.results[1] is None
    until(lambda: not server.left() and not processes(server))  # nobody came back: the device cleans up


def test_a_step_that_hangs_is_ended(made: Path, device: ssh.SshDevice, sshd: Sshd) -> None:
    steps = measured(device, made, START, {**LONG, "timeout_seconds": 2})
    outcome = device.run(steps, on("sustain", functools.partial(stop, sshd, "toolkit.bench.measure")))
    assert outcome.failed is not None
    assert (outcome.failed["kind"], outcome.results[1]) == ("timeout", None)
    assert "'sustain' did not end within 2 s and was ended" in outcome.failed["error"]


def test_a_runner_that_hangs_is_ended(
    made: Path, device: ssh.SshDevice, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "HUNG_SECONDS", 0.5)
    steps = measured(device, made, START, {**LONG, "timeout_seconds": 1})
    outcome = device.run(steps, on("sustain", functools.partial(stop, sshd, "toolkit.bench.runner")))
    assert outcome.failed is not None
    assert outcome.failed["kind"] == "timeout"
    assert "nor did the runner end it" in outcome.failed["error"]


def stop(sshd: Sshd, module: str) -> None:
    for process, command in processes(sshd).items():
        if module in command:
            os.kill(process, signal.SIGSTOP)


@pytest.fixture
def small_disk(sshd: Sshd) -> Iterator[Path]:
    """A few megabytes, where the server's commands make their folders."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(sshd.temporary)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be made: {mounted.stderr}")
    try:
        yield sshd.temporary
    finally:
        subprocess.run(["umount", str(sshd.temporary)], check=True)


def test_a_disk_that_is_full_is_told(made: Path, small_disk: Path, sshd: Sshd, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.mkdir()
    (big / "model.bin").write_bytes(os.urandom(6_000_000))

    def fill() -> None:
        with contextlib.suppress(OSError), (small_disk / "filled").open("wb") as stream:
            while True:
                stream.write(b"\0" * 4096)
                stream.flush()

    message = r"cannot write 6\.0 MB to .*/big: .*no space is left on the disk there"
    with reached(sshd) as device, pytest.raises(InputError, match=message):
        device.push(big, "big")
    with reached(sshd) as device:
        outcome = device.run(measured(device, made, START, LONG), on("sustain", fill))
    (small_disk / "filled").unlink()
    assert outcome.failed is not None
    assert outcome.failed["kind"] == "crash"
    assert "runner was ended: no space is left on the disk there" in outcome.failed["error"]
    assert outcome.results[0] is not None


@pytest.mark.parametrize("aside", [False, True], ids=["in this thread", "in a thread beside it"])
def test_ctrl_c_leaves_nothing_there(made: Path, sshd: Sshd, aside: bool) -> None:
    config = sshd.folder / "config-of-a-board"  # under another name, it does not look like this machine
    config.write_text(f"Host board\n  HostName 127.0.0.1\n  Port {sshd.port}\n{sshd.config.read_text()}")
    address = sshd.address.replace(f"127.0.0.1:{sshd.port}", "board") if aside else sshd.address
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit", "bench", str(made), "--device", address, "--ssh-config", str(config),
         "--sustain", "60s"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(toolkit.__file__).parent.parent)},
    )  # fmt: skip
    until(lambda: any("toolkit.bench.measure" in command for command in processes(sshd).values()))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of its foreground
    _, said = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "Warning" not in said


# --- emulated


@pytest.fixture(scope="module")
def arm(cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A server whose python3 is that of an emulated Cortex-A76, with all that it starts."""
    try:
        emulator_setup.tools()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    with serving_arm(tmp_path_factory.mktemp("arm"), cache_folder) as server:
        yield server


def test_an_emulated_arm_gives_answers_and_no_times(made: Path, arm: Sshd, tmp_path: Path) -> None:
    output = tmp_path / "record.json"
    done = run_toolkit("bench", made, "--device", arm.address, "--ssh-config", arm.config, "-o", output)
    assert done.returncode == 0, done.stderr
    record = Record.model_validate_json(output.read_text())
    assert (record.kind, record.clock, record.protocol.name) == ("emulated", "none: answers are compared", "answers")
    facts = record.device.facts
    assert (facts["architecture"], facts["emulated_by"], facts["packages"]) == ("aarch64", "qemu-aarch64", "its own")
    assert "asimddp" in facts["isa"]
    assert record.answers is not None
    assert record.answers["examples"] == 3
    assert record.answers["largest_difference"] < 1e-4
    for part in (record.latency, record.throughput_per_s, record.cold_start, record.warm_start, record.memory):
        assert part is None
    assert "emulated" in done.stdout
    assert "latency" not in done.stdout
    assert " ms" not in done.stdout
    assert arm.left() == []


def test_who_knows_that_a_machine_is_emulated_may_say_so(made: Path, sshd: Sshd, tmp_path: Path) -> None:
    settings = Settings(tmp_path, ssh_config=sshd.config)
    record = run.bench(str(made), [f"{sshd.address}?kind=emulated"], Wanted(), settings)[0]
    assert (record.kind, record.latency) == ("emulated", None)
    assert record.answers is not None
    assert record.answers["bit_exact"]  # it is this machine
    assert record.device.fingerprint != assembly.device_of("local", local.describe()).fingerprint
    with pytest.raises(InputError, match="can do nothing of what is wanted"):
        run.bench(str(made), [f"{sshd.address}?kind=emulated"], Wanted(sustain_seconds=5.0), settings)

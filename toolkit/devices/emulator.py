"""An Arm CPU emulated by QEMU, on any Linux: what its kernels answer, and how many instructions they take.

`emulator://cortex-a76` runs the engines' aarch64 builds, which choose their kernels by the CPU that they see. Answers
are those of such a CPU, and counts of instructions repeat exactly; time and memory mean nothing here and are not told.
`emulator://cortex-a76?mode=system` is a whole machine, in `toolkit.devices.emulator_system`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.bench.encoding import compared, encoded
from toolkit.devices import Device, Outcome, Progress, Settings, emulator_setup, guest_inference
from toolkit.engines import Arrays
from toolkit.errors import InputError, MissingDependencyError, ToolkitError

SCHEME = "emulator"
MODES = ("user", "system")
CLOCK = "none: instructions are counted"
EXAMPLES = 3  # that are counted, of those that are given
RUNS = 5  # of which the least counts: now and then the allocator does more
TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Cpu:
    """What an Arm CPU calls itself in its main ID register."""

    title: str
    implementer: str
    variant: str
    part: str
    revision: str


CPUS = {
    "cortex-a53": Cpu("Cortex-A53", "0x41", "0x0", "0xd03", "4"),
    "cortex-a72": Cpu("Cortex-A72", "0x41", "0x0", "0xd08", "3"),
    "cortex-a76": Cpu("Cortex-A76", "0x41", "0x4", "0xd0b", "1"),
}
# The names that Linux gives to the bits of AT_HWCAP and AT_HWCAP2 on arm64, in their order.
_FEATURES = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 sm3 "
    "sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg"
)
_FEATURES_2 = (
    "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16 i8mm bf16 "
    "dgh rng bti mte ecv afp rpres mte3 sme"
)


@dataclass(frozen=True)
class Counted:
    """Instructions of one inference by class, `total` among them, and what it answered."""

    instructions: dict[str, int]
    answers: Arrays


class Emulator:
    """A guest that is set up, as one CPU."""

    kind: Literal["measured", "emulated", "estimated"] = "emulated"
    clock = CLOCK
    here = True
    steps = frozenset({"count"})

    def __init__(self, cpu: str, guest: Path) -> None:
        self.cpu, self.guest = cpu, guest
        self.address = f"{SCHEME}://{cpu}"
        self._features: list[str] = []

    def describe(self) -> dict[str, Any]:
        """The CPU, its instruction sets and what runs on it."""
        done = subprocess.run([emulator_setup.QEMU, "--version"], capture_output=True, text=True, check=True)
        version = re.search(r"version ([\d.]+)", done.stdout)
        return {
            "device": self.address,
            "title": f"{CPUS[self.cpu].title}, emulated",
            "kind": "emulated",
            "clock": CLOCK,
            "cpu_model": CPUS[self.cpu].title,
            "architecture": "aarch64",
            "isa": self.features(),
            "qemu": version.group(1) if version else None,
            **emulator_setup.read(self.guest),
        }

    def python(
        self, arguments: Sequence[str], *, counts: Path | None = None, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """`program`, which is the guest's Python."""
        return self.program(self._python(), arguments, counts=counts, timeout_seconds=timeout_seconds)

    def program(
        self,
        path: str,
        arguments: Sequence[str],
        *,
        counts: Path | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run an aarch64 program with `arguments`; `counts` is where the counter writes. Raises InputError if it does
        not end in time."""
        plugin = ["-plugin", f"{self.guest / 'counter.so'},out={counts}"] if counts else []
        try:
            with tempfile.TemporaryDirectory(prefix="toolkit-guest-") as prefix:
                self._view(Path(prefix))
                command = [emulator_setup.QEMU, "-cpu", self.cpu, *plugin, "-L", prefix, path, *arguments]
                return subprocess.run(
                    command,
                    env=self._environment(),
                    capture_output=True,
                    text=True,
                    timeout=timeout_seconds,
                    check=False,
                )
        except subprocess.TimeoutExpired as error:
            raise InputError(f"{self.address} did not end within {timeout_seconds:g} s.") from error

    def count(self, engine: str, model: Path, examples: Sequence[Arrays], runs: int = RUNS) -> list[Counted]:
        """One inference of each example, on one thread. Raises InputError if the engine fails there."""
        with tempfile.TemporaryDirectory(prefix="toolkit-count-") as work:
            folder = Path(work)
            guest_inference.save(list(examples), folder / "inputs.npz")
            request = {
                "engine": engine, "model": str(model.resolve()), "runs": runs, "inputs": str(folder / "inputs.npz"),
                "answers": str(folder / "answers.npz"),
            }  # fmt: skip
            (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
            done = self.python(
                ["-m", "toolkit.devices.guest_inference", str(folder / "request.json")], counts=folder / "counts"
            )
            if done.returncode:
                said = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
                raise InputError(f"{self.address}: {engine} cannot run {model}: {said[-1]}")
            answers = guest_inference.load(folder / "answers.npz")
            found = _between_marks(folder / "counts")
        if len(found) != runs * len(answers):
            raise InputError(f"{self.address}: {len(found)} inferences were counted, of {runs * len(answers)}.")
        return [
            Counted(min(found[number * runs : (number + 1) * runs], key=lambda each: each["total"]), said)
            for number, said in enumerate(answers)
        ]

    def push(self, source: Path, name: str) -> str:
        """Nothing has to be brought: the guest sees this machine's files."""
        return str(source.resolve())

    def _counted(self, step: dict[str, Any]) -> dict[str, Any]:
        """The instructions of at most `EXAMPLES` of a step's examples, and how the answers compare with those of this
        machine's engine."""
        if step.get("threads") not in (None, 1):
            raise InputError(f"--threads {step['threads']}: on an emulated CPU instructions are counted on one thread.")
        folder = Path(step["bundle"])
        manifest, inputs = encoded(folder, step["examples"][:EXAMPLES], step.get("sizes"))
        found = self.count(manifest.engine, manifest.artifact, inputs)
        return {
            "engine": {"engine": manifest.engine, "threads": 1},
            "instructions": [each.instructions for each in found],
            "answers": compared(manifest, inputs, [each.answers for each in found]),
        }

    def run(self, steps: list[dict[str, Any]], progress: Progress) -> Outcome:
        """Count, one step after the other."""
        outcome = Outcome([None] * len(steps))
        for number, step in enumerate(steps):
            progress(number, len(steps), f"{step['what']} on {CPUS[self.cpu].title}")
            try:
                outcome.results[number] = self._counted(step)
            except ToolkitError as error:
                outcome.failed = {"kind": "error", "error": str(error), "exit_code": error.exit_code}
                break
        progress(len(steps), len(steps), "done")
        return outcome

    def pull(self, name: str) -> bytes:
        """Nothing is left there."""
        raise InputError(f"{self.address} keeps no files.")

    def close(self) -> None:
        """Nothing is left there."""

    def _python(self) -> str:
        version = emulator_setup.read(self.guest)["python"]
        return str(self.guest / "root" / "usr" / "bin" / f"python{version}")

    def _environment(self) -> dict[str, str]:
        """Of the guest; nothing of this machine's."""
        package = Path(__file__).resolve().parent.parent.parent
        return {
            "PYTHONPATH": os.pathsep.join([str(self.guest / "site-packages"), str(package)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "ORT_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": "/usr/bin:/bin",
            "HOME": "/nonexistent",
            "LC_ALL": "C.UTF-8",
        }

    def features(self) -> list[str]:
        """The instruction sets that this CPU tells its programs of."""
        if self._features:
            return self._features
        root = self.guest / "root"
        command = [emulator_setup.QEMU, "-cpu", self.cpu, "-L", str(root), "-E", "LD_SHOW_AUXV=1", self._python()]
        done = subprocess.run([*command, "-S", "-c", ""], capture_output=True, text=True, env={}, check=False)
        found = []
        for key, names in (("AT_HWCAP", _FEATURES), ("AT_HWCAP2", _FEATURES_2)):
            told = re.search(rf"{key}:\s+(?:0x)?([0-9a-f]+)", done.stdout)
            bits = int(told.group(1), 16) if told else 0
            found += [name for number, name in enumerate(names.split()) if bits >> number & 1]
        if not found:
            raise MissingDependencyError(f"{self.address}: the guest does not start: {done.stderr.strip()[:200]}")
        self._features = found
        return found

    def _view(self, prefix: Path) -> None:
        """The guest's files with those in which Linux describes the CPU: QEMU shows this machine's instead, and engines
        that read the wrong ones crash."""
        for path in (self.guest / "root").iterdir():
            if path.name not in ("proc", "sys"):
                (prefix / path.name).symlink_to(path)
        cpu = CPUS[self.cpu]
        (prefix / "proc").mkdir()
        lines = {
            "processor": "0", "BogoMIPS": "100.00", "Features": " ".join(self.features()),
            "CPU implementer": cpu.implementer, "CPU architecture": "8", "CPU variant": cpu.variant,
            "CPU part": cpu.part, "CPU revision": cpu.revision,
        }  # fmt: skip
        text = "".join(f"{key}\t: {value}\n" for key, value in lines.items())
        (prefix / "proc" / "cpuinfo").write_text(f"{text}\n", encoding="ascii")
        folder = prefix / "sys" / "devices" / "system" / "cpu"
        topology = folder / "cpu0" / "topology"
        topology.mkdir(parents=True)
        for name, value in {"kernel_max": "0", "possible": "0", "present": "0", "online": "0"}.items():
            (folder / name).write_text(f"{value}\n")
        lists = ("core_siblings_list", "cluster_cpus_list", "package_cpus_list", "thread_siblings_list")
        for name in ("physical_package_id", "core_id", *lists):
            (topology / name).write_text("0\n")


def addresses() -> dict[str, str]:
    """Every emulated device and what it is."""
    return {
        f"{SCHEME}://{name}": f"{cpu.title}, emulated: answers and counts of instructions" for name, cpu in CPUS.items()
    }


def system_addresses() -> dict[str, str]:
    """Every machine that is emulated as a whole and what it is."""
    return {
        f"{SCHEME}://{name}?mode=system": f"{cpu.title}, a whole machine emulated: virtual time, real memory"
        for name, cpu in CPUS.items()
    }


def parse(address: str) -> tuple[str, str]:
    """The CPU and the mode of `emulator://CPU?mode=MODE`. Raises InputError."""
    place, _, query = address.partition("?")
    scheme, _, cpu = place.partition("://")
    if scheme != SCHEME or cpu not in CPUS:
        known = ", ".join(f"{SCHEME}://{name}" for name in CPUS)
        raise InputError(f"'{address}' is no emulated device; known: {known}.")
    if query not in ("", *(f"mode={mode}" for mode in MODES)):
        raise InputError(f"'{address}': behind the ? goes {' or '.join(f'mode={mode}' for mode in MODES)}.")
    return cpu, query.removeprefix("mode=") or MODES[0]


def connect(address: str, settings: Settings) -> Device:
    """The device at `emulator://CPU[?mode=MODE]`. Raises InputError for an unknown one, MissingDependencyError for one
    that is not set up."""
    cpu, mode = parse(address)
    if mode == "system":
        from toolkit.devices import emulator_system

        return emulator_system.connect(address, cpu, settings)
    return user_mode(cpu, settings.cache)


def user_mode(cpu: str, cache: Path) -> Emulator:
    """A CPU that counts. Raises MissingDependencyError if it is not set up."""
    emulator_setup.tools([emulator_setup.QEMU])
    if not emulator_setup.is_ready(cache):
        raise MissingDependencyError(f"{SCHEME}://{cpu} is not set up; run: toolkit devices setup emulator")
    return Emulator(cpu, emulator_setup.guest_folder(cache))


def _between_marks(path: Path) -> list[dict[str, int]]:
    """The counts between each pair of marks."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    except OSError as error:
        raise MissingDependencyError(
            "QEMU did not load the instruction counter; it needs qemu-aarch64 with plugins, as Debian's package "
            "qemu-user has it."
        ) from error
    return [
        {key: value for key, value in line.items() if key != "mark"}
        for line in lines
        if line["mark"] == guest_inference.STOP
    ]

"""A microcontroller that is not here: the interpreter that runs there, and what a compiler says of its NPU.

`mcu://cortex-m` runs a file of integers in TensorFlow Lite Micro, whose arena it measures to the byte.
`mcu://ethos-u55-128` and its kin do the same and have Vela, the compiler for these NPUs, estimate cycles and memory;
`?system=NAME&memory=NAME` are configurations of Vela's. No time is measured: there is nothing to measure.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

import numpy as np

from toolkit.bench.encoding import compared, encoded
from toolkit.devices import Outcome, Progress, Settings, mcu_vela
from toolkit.engines import Arrays
from toolkit.engines.litert import Tensor, fed, to_floats
from toolkit.errors import InputError, ToolkitError, missing_extra
from toolkit.export import litert_memory
from toolkit.runtime import manifest as manifests
from toolkit.runtime.manifest import Manifest

SCHEME = "mcu"
CPU = "cortex-m"
EXTRA = "mcu"
EXAMPLES = 3  # that are run, of those that are given


@dataclass(frozen=True)
class Npu:
    """What Vela takes an NPU's surroundings to be, unless it is told: its own names."""

    title: str
    system: str
    memory: str


_U55 = "Ethos_U55_High_End_Embedded", "Shared_Sram"
_U65 = "Ethos_U65_Client_Server", "Dedicated_Sram_384KB"
NPUS = {
    **{f"ethos-u55-{macs}": Npu(f"Ethos-U55 with {macs} MACs", *_U55) for macs in (32, 64, 128, 256)},
    **{f"ethos-u65-{macs}": Npu(f"Ethos-U65 with {macs} MACs", *_U65) for macs in (256, 512)},
}


class Microcontroller:
    """A Cortex-M with an NPU, or without one."""

    here = True

    def __init__(self, address: str, settings: Settings, name: str, npu: Npu | None) -> None:
        self.address = address
        self._settings, self._name, self._npu = settings, name, npu
        self.kind: Literal["measured", "emulated", "estimated"] = "estimated" if npu else "emulated"
        self.clock = f"estimate of {mcu_vela.version()}" if npu else "none: bytes are counted"
        self.steps = frozenset({"arena", "cycles"} if npu else {"arena"})

    def describe(self) -> dict[str, Any]:
        """What stands for it here."""
        title = f"Cortex-M with {self._npu.title}" if self._npu else "Cortex-M, the interpreter alone"
        facts = {
            "device": self.address,
            "title": title,
            "kind": self.kind,
            "clock": self.clock,
            litert_memory.PACKAGE: metadata.version(litert_memory.PACKAGE),
        }
        if self._npu:
            facts |= {
                mcu_vela.PACKAGE: metadata.version(mcu_vela.PACKAGE),
                "system": self._npu.system,
                "memory": self._npu.memory,
            }
        return facts

    def push(self, source: Path, name: str) -> str:
        """Nothing has to be brought; a bundle that no microcontroller runs is refused."""
        check(manifests.read(source), self.address)
        return str(source.resolve())

    def run(self, steps: list[dict[str, Any]], progress: Progress) -> Outcome:
        """One step after the other."""
        outcome = Outcome([None] * len(steps))
        for number, step in enumerate(steps):
            progress(number, len(steps), str(step["what"]))
            try:
                outcome.results[number] = self._arena(step) if step["what"] == "arena" else self._cycles(step)
            except ToolkitError as error:
                outcome.failed = {"kind": "error", "error": str(error), "exit_code": error.exit_code}
                break
            outcome.failed = outcome.failed or self._too_large(outcome.results[number] or {})
        progress(len(steps), len(steps), "done")
        return outcome

    def _arena(self, step: dict[str, Any]) -> dict[str, Any]:
        """The interpreter's memory and answers, on at most `EXAMPLES` of the step's examples."""
        manifest, inputs = encoded(Path(step["bundle"]), step["examples"][:EXAMPLES], step.get("sizes"))
        sizes, answers = answered(manifest, inputs)
        version = metadata.version(litert_memory.PACKAGE)
        return {
            "engine": {"engine": "tflite-micro", "version": version, "threads": 1},
            "arena": {
                "by": f"{litert_memory.PACKAGE} {version}, reference kernels, pointers of {platform.architecture()[0]}",
                "total_bytes": sizes["total"],
                "head_bytes": sizes["head"],
                "tail_bytes": sizes["tail"],
                "tail_parts_bytes": sizes["parts"],
                "model_bytes": manifest.artifact.stat().st_size,
            },
            "answers": compared(manifest, inputs, answers),
        }

    def _cycles(self, step: dict[str, Any]) -> dict[str, Any]:
        assert self._npu is not None  # noqa: S101 - else it is none of its steps
        model = manifests.read(Path(step["bundle"])).artifact
        return {"cycles": mcu_vela.estimate(model, self._name, self._npu.system, self._npu.memory)}

    def _too_large(self, result: dict[str, Any]) -> dict[str, Any] | None:
        """How an arena fails that is larger than the memory it may have."""
        limit, arena = self._settings.memory_bytes, result.get("arena")
        if limit is None or arena is None or arena["total_bytes"] <= limit:
            return None
        error = f"The arena needs {arena['total_bytes']} bytes, more than the {limit} that it may have."
        return {"kind": "memory", "error": error, "exit_code": 1}

    def pull(self, name: str) -> bytes:
        """Nothing is left there."""
        raise InputError(f"{self.address} keeps no files.")

    def close(self) -> None:
        """Nothing is left there."""


def addresses() -> dict[str, str]:
    """Every microcontroller and what is told of it."""
    found = {f"{SCHEME}://{CPU}": "Cortex-M: the arena of TensorFlow Lite Micro"}
    return found | {f"{SCHEME}://{name}": f"{npu.title}: the arena, and Vela's estimate" for name, npu in NPUS.items()}


def state(address: str) -> str:
    """`ready`, or what to type to make it so."""
    missing = _missing(address.removeprefix(f"{SCHEME}://"))
    return f"pip install 'edge-deployment-toolkit[{EXTRA}]'" if missing else "ready"


def _missing(name: str) -> str | None:
    """A package that this microcontroller needs and that is not installed."""
    for package in (litert_memory.PACKAGE, *([mcu_vela.PACKAGE] if name in NPUS else [])):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            return package
    return None


def connect(address: str, settings: Settings) -> Microcontroller:
    """The device at `mcu://NAME`. Raises InputError for an unknown one, MissingDependencyError without the packages."""
    name, _, query = address.removeprefix(f"{SCHEME}://").partition("?")
    given = dict(parse_qsl(query, keep_blank_values=True))
    if name != CPU and name not in NPUS:
        raise InputError(f"'{address}' is no microcontroller; known: {', '.join(addresses())}.")
    unknown = sorted(set(given) - ({"system", "memory"} if name in NPUS else set()))
    if unknown:
        raise InputError(f"'{address}': there is no '{unknown[0]}' to set of it.")
    if missing := _missing(name):
        raise missing_extra(missing, EXTRA, address)
    if name == CPU:
        return Microcontroller(address, settings, name, None)
    default = NPUS[name]
    npu = Npu(default.title, given.get("system", default.system), given.get("memory", default.memory))
    mcu_vela.check(npu.system, npu.memory)
    return Microcontroller(address, settings, name, npu)


def check(manifest: Manifest, address: str) -> None:
    """Raises InputError for a bundle that is not LiteRT in integers from its inputs to its outputs."""
    artifact = manifest.data["artifact"]
    tensors = [*artifact["inputs"], *artifact["outputs"]]
    if manifest.engine == "litert" and all(tensor["dtype"] in ("int8", "uint8") for tensor in tensors):
        return
    floats = next((tensor for tensor in tensors if tensor["dtype"] not in ("int8", "uint8")), tensors[0])
    what = f"{manifest.engine} {artifact['precision']}, with '{floats['name']}' in {floats['dtype']}"
    raise InputError(
        f"{address} runs LiteRT files of integers alone, and {manifest.folder} is {what}. Convert for a "
        "microcontroller: toolkit convert … --target cortex-m4."
    )


def answered(manifest: Manifest, inputs: list[Arrays]) -> tuple[dict[str, Any], list[Arrays]]:
    """(the arena's sizes, answers in float32 by name) of TensorFlow Lite Micro for the encoder's arrays."""
    from toolkit.export import flatbuffer

    model = flatbuffer.read(manifest.artifact)
    signature, graph = model.signatureDefs[0], model.subgraphs[0]
    tensors = {
        each["name"]: Tensor(np.dtype(each["dtype"]).type, tuple(each["shape"]), each["scale"], each["zero_point"])
        for each in (*manifest.data["artifact"]["inputs"], *manifest.data["artifact"]["outputs"])
    }

    def placed(values: Any, order: Any) -> list[str]:
        names = {int(value.tensorIndex): value.name.decode() for value in values}
        return [names[int(index)] for index in order]

    takes, gives = placed(signature.inputs, graph.inputs), placed(signature.outputs, graph.outputs)
    examples = [[fed(name, each[name], tensors[name]) for name in takes] for each in inputs]
    sizes, said = litert_memory.answers_on_a_microcontroller(manifest.artifact, examples, len(gives))
    answers = [
        {
            name: to_floats(value, tensors[name].scale, tensors[name].zero_point)
            for name, value in zip(gives, each, strict=True)
        }
        for each in said
    ]
    return sizes, answers

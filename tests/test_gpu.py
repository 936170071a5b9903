"""`gpu://` without a GPU: what is refused and how, and everything around CUDA. PyTorch's ways run on the CPU here; an
engine of TensorRT is a stand-in that computes by ONNX Runtime, on memory that a stand-in for CUDA's runtime gives."""

from __future__ import annotations

import ctypes
import json
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import run_toolkit
from tests.engine_bundles import engine_bundle
from toolkit import devices, engines, tasks
from toolkit.bench import compare, run
from toolkit.bench.encoding import encoded
from toolkit.bench.record import Record
from toolkit.bench.steps import Wanted
from toolkit.devices import Settings, gpu, gpu_engines
from toolkit.engines.torch import HOW, TorchEngine
from toolkit.errors import InputError, MissingDependencyError
from toolkit.runtime import manifest as manifests
from toolkit.tensorrt import builder, execute

SMI = """#!/bin/sh
case "$*" in
*--id=0*) echo "NVIDIA H100 80GB HBM3, 550.54.15, 9.0, 81559, 700.00, 345, 1980, Enabled, Enabled";;
*) echo "No devices were found"; exit 6;;
esac
"""
QUICK = Wanted(seconds=0.2, starts=1, rounds=4)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for nvidia-smi, which tells of one GPU."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(SMI, encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's ways on the CPU, in the measuring processes too."""
    prepare = gpu_engines.prepare
    monkeypatch.setattr(gpu_engines, "prepare", lambda *given: {**prepare(*given), "device": "cpu"})


@pytest.fixture(scope="module")
def onnx_bundle(encoder: Path, reviews: Path) -> Path:
    return engine_bundle("onnxruntime", encoder, reviews)


# --- addresses and GPUs that are not there


@pytest.mark.parametrize(
    ("address", "found"),
    [("gpu://", (0, None)), ("gpu://3", (3, None)), ("gpu://1?with=torch-graphs", (1, "torch-graphs"))],
)
def test_addresses(address: str, found: tuple[int, str | None]) -> None:
    assert gpu.parse(address) == found


@pytest.mark.parametrize("address", ["gpu://x", "gpu://-1", "gpu://0?how=torch", "gpu://0?with=jax", "gpu://0?with="])
def test_no_address_of_a_gpu(address: str) -> None:
    with pytest.raises(InputError, match=r"is no GPU|there is no way"):
        devices.connect(address, Settings(Path()))


def test_without_a_driver(onnx_bundle: Path, tmp_path: Path) -> None:
    done = run_toolkit("bench", onnx_bundle, "--device", "gpu://0", environ={"PATH": str(tmp_path)})
    assert done.returncode == 3
    assert "no NVIDIA driver is here" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("driver")
def test_a_gpu_describes_itself() -> None:
    device = devices.connect("gpu://", Settings(Path()))
    found = device.describe()
    device.close()
    assert found["title"] == "NVIDIA H100 80GB HBM3"
    assert (found["driver"], found["compute_capability"]) == ("550.54.15", "9.0")
    assert found["architecture"]  # and the machine that it is in
    with pytest.raises(MissingDependencyError, match="there is no such GPU: No devices were found"):
        devices.connect("gpu://7", Settings(Path()))


@pytest.mark.usefixtures("driver")
def test_the_list_of_devices_names_it(tmp_path: Path) -> None:
    def shown() -> dict[str, str]:
        done = run_toolkit("devices", "list", "--json")
        return {each["device"]: each["state"] for each in json.loads(done.stdout)}

    assert shown()["gpu://0"] == "ready: NVIDIA H100 80GB HBM3"
    (tmp_path / "bin" / "nvidia-smi").unlink()
    assert "no NVIDIA driver is here" in shown()["gpu://0"]


# --- ways that a bundle does not go


@pytest.mark.parametrize(
    ("engine", "way", "error", "said"),
    [
        ("onnxruntime", None, MissingDependencyError, "has no CUDA kernels.*onnxruntime-gpu"),
        ("litert", None, InputError, "litert, which has no kernels for NVIDIA GPUs"),
        ("litert", "onnxruntime", InputError, "holds no ONNX file"),
        ("onnxruntime", "tensorrt", InputError, "not for TensorRT"),
        ("onnxruntime", "torch", InputError, "--checkpoint FOLDER"),
    ],
)
def test_what_does_not_run_there(
    engine: str, way: str | None, error: type[Exception], said: str, encoder: Path, reviews: Path
) -> None:
    manifest = manifests.read(engine_bundle(engine, encoder, reviews))
    with pytest.raises(error, match=said):
        gpu_engines.prepare(manifest, 0, way, Settings(Path()), print)


def test_nothing_falls_back_to_the_cpu(onnx_bundle: Path, tuned: Path) -> None:
    """onnxruntime by itself would."""
    manifest = manifests.read(onnx_bundle)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnxruntime's own
        with pytest.raises(MissingDependencyError, match="does not start its CUDA kernels on GPU 0"):
            gpu_engines.load(manifest, {"way": "onnxruntime", "number": 0}, 1)
    with pytest.raises(MissingDependencyError, match="cannot use cuda:0"):
        gpu_engines.load(manifest, {"way": "torch", "device": "cuda:0", "checkpoint": str(tuned)}, 1)


# --- PyTorch


@pytest.mark.parametrize("how", [name for name in HOW if name != "graphs"])
def test_pytorch_answers_alike_in_all_ways(how: str, onnx_bundle: Path, tuned: Path) -> None:
    manifest, inputs = encoded(onnx_bundle, ["a quiet, brilliant film", "dull", "a long and winding, but fine, one"])
    way = "torch" if how == "eager" else f"torch-{how}"
    told = {"way": way, "number": 0, "device": "cpu", "checkpoint": str(tuned)}
    engine, reference = gpu_engines.load(manifest, told, 1), TorchEngine(tuned, tasks.get(manifest.task), 1)
    for given in inputs:
        (said,), (expected,) = engine.run(given).values(), reference.run(given).values()
        np.testing.assert_allclose(said, expected, atol=1e-5)
    assert engine.describe()["how"] == how if how != "eager" else "how" not in engine.describe()
    engine.close()
    reference.close()


@pytest.mark.usefixtures("driver", "on_cpu")
def test_a_record_of_the_checkpoint(onnx_bundle: Path, tuned: Path, tmp_path: Path) -> None:
    settings = Settings(tmp_path, checkpoint=tuned)
    (record,) = run.bench(str(onnx_bundle), ["gpu://0?with=torch"], QUICK, settings)
    assert record.failure is None
    assert record.latency is not None
    assert record.latency.count >= 50
    assert record.memory is not None
    assert record.engine is not None
    assert record.engine["engine"] == "torch"
    assert record.answers is not None
    assert 0 < record.answers["largest_difference"] < 0.5  # int8 against float32
    assert record.device.title == "NVIDIA H100 80GB HBM3"
    assert any("ran the checkpoint tuned, not the bundle's file" in text for text in record.warnings)


@pytest.mark.usefixtures("driver", "on_cpu")
def test_bundles_in_turn(onnx_bundle: Path, tuned: Path, tmp_path: Path) -> None:
    settings = Settings(tmp_path, checkpoint=tuned)
    record = compare.compare([str(onnx_bundle)] * 2, "gpu://0?with=torch", Wanted(seconds=0.5), settings)
    assert record.failure is None
    assert len(record.latency) == 2


@pytest.mark.usefixtures("driver")
def test_a_folder_that_is_no_checkpoint(onnx_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no config\.json"):
        run.bench(str(onnx_bundle), ["gpu://0?with=torch"], QUICK, Settings(tmp_path, checkpoint=tmp_path))


# --- one device of several that runs nothing


@pytest.mark.usefixtures("driver")
def test_the_records_of_other_devices_are_kept(onnx_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "records.json"
    both = ("--device", "local", "--device", "gpu://0")
    done = run_toolkit("bench", onnx_bundle, *both, "--seconds", "0.2", "-o", output)
    assert done.returncode == 3
    assert "has no CUDA kernels" in done.stderr
    assert "Traceback" not in done.stderr
    first, second = (Record.model_validate(each) for each in json.loads(output.read_text()))
    assert first.failure is None
    assert first.latency is not None
    assert second.failure is not None
    assert "has no CUDA kernels" in second.failure.error
    assert second.device.title == "NVIDIA H100 80GB HBM3"


# --- TensorRT


class HostCuda:
    """CUDA's runtime with this machine's memory for the GPU's: addresses are real, and so are the copies."""

    def __init__(self, fails: str = "") -> None:
        self.memory: dict[int, Any] = {}
        self.called: list[str] = []
        self._fails = fails
        self.cudaGetErrorString: Any = lambda code: b"out of memory"
        for name in ("cudaSetDevice", "cudaStreamCreate", "cudaStreamSynchronize", "cudaStreamDestroy"):
            setattr(self, name, self._noted(name, lambda *arguments: None))
        self.cudaMalloc = self._noted("cudaMalloc", self._allocate)
        self.cudaFree = self._noted("cudaFree", lambda address: self.memory.pop(address.value))
        self.cudaMemcpyAsync = self._noted("cudaMemcpyAsync", self._copy)

    def _noted(self, name: str, does: Callable[..., Any]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.called.append(name)
            if name == self._fails:
                return 2
            does(*arguments)
            return 0

        return call

    def _allocate(self, place: Any, size: Any) -> None:
        memory = ctypes.create_string_buffer(size.value)
        self.memory[ctypes.addressof(memory)] = memory
        ctypes.cast(place, ctypes.POINTER(ctypes.c_void_p))[0] = ctypes.addressof(memory)

    def _copy(self, target: Any, source: Any, size: Any, kind: Any, stream: Any) -> None:
        ctypes.memmove(target.value, source.value, size.value)


def stand_in_tensorrt(onnx: Path, most: int = 512) -> Any:
    """`tensorrt` as of 10, with an engine that is an ONNX file and computes by ONNX Runtime on the addresses that it
    was given. Inputs longer than `most` are outside its profile."""
    inner = engines.get("onnxruntime").load(onnx)
    described = inner.describe()
    tensors = {each["name"]: each for each in (*described["inputs"], *described["outputs"])}
    types_of = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(float16)": np.float16}
    outputs = [each["name"] for each in described["outputs"]]

    class Context:
        def __init__(self) -> None:
            self.shapes: dict[str, tuple[int, ...]] = {}
            self.addresses: dict[str, int] = {}

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self.shapes[name] = shape
            return max(shape) <= most

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (next(iter(self.shapes.values()))[0], 2)

        def set_tensor_address(self, name: str, address: int) -> None:
            self.addresses[name] = address

        def execute_async_v3(self, stream: int) -> bool:
            given = {name: self._array(name, shape).copy() for name, shape in self.shapes.items()}
            for name, value in inner.run(given).items():
                self._array(name, value.shape)[:] = value
            return True

        def _array(self, name: str, shape: tuple[int, ...]) -> Any:
            dtype = np.dtype(types_of[tensors[name]["dtype"]])
            size = int(np.prod(shape)) * dtype.itemsize
            memory = (ctypes.c_char * size).from_address(self.addresses[name])
            return np.frombuffer(memory, dtype).reshape(shape)

    class Engine:
        num_io_tensors = len(tensors)

        def get_tensor_name(self, number: int) -> str:
            return list(tensors)[number]

        def get_tensor_mode(self, name: str) -> str:
            return "output" if name in outputs else "input"

        def get_tensor_dtype(self, name: str) -> str:
            return str(tensors[name]["dtype"])

        def get_tensor_shape(self, name: str) -> list[int]:
            return [size if isinstance(size, int) else -1 for size in tensors[name]["shape"]]

        def create_execution_context(self) -> Context:
            return Context()

    class Runtime:
        def __init__(self, logger: object) -> None:
            pass

        def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
            return Engine() if content == onnx.read_bytes() else None

    made = types.ModuleType("tensorrt")
    made.__version__ = "10.3.0"  # type: ignore[attr-defined]
    made.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})  # type: ignore[attr-defined]
    made.TensorIOMode = types.SimpleNamespace(INPUT="input")  # type: ignore[attr-defined]
    made.nptype = types_of.__getitem__  # type: ignore[attr-defined]
    made.Runtime = Runtime  # type: ignore[attr-defined]
    return made


def test_an_engine_gets_its_inputs_and_gives_its_answers(onnx_bundle: Path) -> None:
    texts = ["a quiet, brilliant film", "dull", "a long and winding, but in the end a rather fine, one", "dull"]
    manifest, inputs = encoded(onnx_bundle, texts)
    library = HostCuda()
    engine = execute.TensorRtEngine(manifest.artifact, stand_in_tensorrt(manifest.artifact), execute.Cuda(library, 0))
    reference = engines.get("onnxruntime").load(manifest.artifact)
    for given in inputs:
        (said,), (expected,) = engine.run(given).values(), reference.run(given).values()
        np.testing.assert_array_equal(said, expected)
    tensors = len(reference.describe()["inputs"]) + 1
    assert len(library.memory) == tensors  # a buffer each, kept from call to call
    assert library.called.count("cudaStreamSynchronize") == len(texts)
    assert [each["name"] for each in engine.describe()["inputs"]] == [
        each["name"] for each in reference.describe()["inputs"]
    ]
    engine.close()
    assert not library.memory
    assert library.called[-1] == "cudaStreamDestroy"


def test_what_an_engine_does_not_take(onnx_bundle: Path, tmp_path: Path) -> None:
    manifest, (given,) = encoded(onnx_bundle, ["a quiet, brilliant film"])
    trt = stand_in_tensorrt(manifest.artifact, most=3)
    engine = execute.TensorRtEngine(manifest.artifact, trt, execute.Cuda(HostCuda(), 0))
    with pytest.raises(InputError, match="its profile has other sizes"):
        engine.run(given)
    with pytest.raises(InputError, match="which it was not given"):
        engine.run({})
    foreign = tmp_path / "other.engine"
    foreign.write_bytes(b"of another release")
    with pytest.raises(InputError, match="built by another release, or for another GPU"):
        execute.TensorRtEngine(foreign, trt, execute.Cuda(HostCuda(), 0))
    with pytest.raises(InputError, match="Cannot read"):
        execute.TensorRtEngine(tmp_path / "none", trt, execute.Cuda(HostCuda(), 0))


def test_a_gpu_whose_memory_is_full(onnx_bundle: Path) -> None:
    manifest, (given,) = encoded(onnx_bundle, ["a quiet, brilliant film"])
    cuda = execute.Cuda(HostCuda(fails="cudaMalloc"), 0)
    engine = execute.TensorRtEngine(manifest.artifact, stand_in_tensorrt(manifest.artifact), cuda)
    with pytest.raises(MissingDependencyError, match=r"cannot do cudaMalloc: out of memory \(code 2\)"):
        engine.run(given)


def test_without_tensorrt_or_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingDependencyError, match="package 'tensorrt'"):
        execute.load(tmp_path / "an.engine")
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    with pytest.raises(MissingDependencyError, match=r"CUDA's runtime is not found|cannot do cudaSetDevice"):
        execute.load(tmp_path / "an.engine")


def test_an_engine_is_kept_for_later(onnx_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def build(folder: Path, arguments: list[str], on_line: Callable[[str], None]) -> dict[str, str]:
        asked.append(arguments)
        return {"engine": "0123.engine"}

    monkeypatch.setattr(builder, "run", build)
    manifest = manifests.read(onnx_bundle)
    manifest.data["engine"]["name"] = "tensorrt"
    told = gpu_engines.prepare(manifest, 2, None, Settings(tmp_path), print)
    assert told["way"] == "tensorrt"
    assert (told["number"], told["engine"]) == (2, str(tmp_path / "engines" / "0123.engine"))
    assert asked == [["--engines", str(tmp_path / "engines"), "--runtime", "tensorrt"]]

#!/usr/bin/env python3
"""Builds the TensorRT engine of this bundle on the device that it is for.

    python3 build_engine.py              # build, or say that the engine at hand still fits
    python3 build_engine.py --describe   # what this device is, as JSON; builds nothing

Needs Python 3.6 or later and the `tensorrt` that comes with the device's JetPack or CUDA (8.2 to 11), nothing else. An
engine holds for one GPU, one TensorRT and one ONNX file only: it is kept in `engines/` under a key of all that it was
built from, with a JSON file of the same name that says so, and is built anew when any part differs. Of two builds at a
time one waits for the other.

With `--runtime tensorrt_rtx --compute-capability 8.9` it builds for a GeForce RTX GPU, on any machine, without a GPU.

Exit codes: 0 built or at hand, 1 the build failed, 2 the bundle is damaged, 3 no TensorRT or no GPU here.
"""

import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import importlib
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BUILD_FAILED, BAD_BUNDLE, NO_RUNTIME = 1, 2, 3
MODULES = {
    "p3767-0000": "Jetson Orin NX 16GB", "p3767-0001": "Jetson Orin NX 8GB", "p3767-0003": "Jetson Orin Nano 8GB",
    "p3767-0004": "Jetson Orin Nano 4GB", "p3767-0005": "Jetson Orin Nano 8GB Developer Kit",
    "p3701-0004": "Jetson AGX Orin 32GB", "p3701-0005": "Jetson AGX Orin 64GB", "p3834-0008": "Jetson AGX Thor",
}  # fmt: skip
COMPUTE_CAPABILITIES = {"tegra210": "5.3", "tegra186": "6.2", "tegra194": "7.2", "tegra234": "8.7", "tegra264": "11.0"}
# By the first numbers of L4T, the Linux of a JetPack.
JETPACKS = (
    ((32, 7), "jetpack-4.6"), ((35,), "jetpack-5.1"), ((36, 3), "jetpack-6.0"), ((36, 4), "jetpack-6.2"),
    ((36, 5), "jetpack-6.2"), ((38,), "jetpack-7.0"), ((39,), "jetpack-7.2"),
)  # fmt: skip


class BuildError(Exception):
    """What ends a build, with the exit code."""

    def __init__(self, code, message):
        Exception.__init__(self, message)
        self.code = code


def say(text):
    """A line of progress, at once."""
    print(f"build: {text}", flush=True)


# The device


def l4t(root):
    """The release of L4T as text, `36.4.3`; None where there is none."""
    try:
        text = (root / "etc" / "nv_tegra_release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return "{}.{}".format(*found.groups()) if found else None


def jetpack(release):
    """The image (targets/shared/images.yaml) that has this L4T; None if it is not known."""
    numbers = tuple(int(part) for part in release.split(".")) if release else ()
    for first, name in JETPACKS:
        if numbers[: len(first)] == first:
            return name
    return None


def compatible(root):
    """What the device tree says the board is compatible with, the most exact first."""
    try:
        text = (root / "proc" / "device-tree" / "compatible").read_bytes()
    except OSError:
        return []
    return [part.decode("ascii", "replace") for part in text.split(b"\0") if part]


def jetson(root):
    """Model and compute capability of a Jetson's module; None and None elsewhere."""
    names = compatible(root)
    ids = re.findall(r"p\d{4}-\d{4}", " ".join(names))
    # A developer kit names its carrier board before the module.
    model = next((MODULES[each] for each in ids if each in MODULES), None) or (ids[-1] if ids else None)
    chip = next((chip for chip in COMPUTE_CAPABILITIES if any(chip in name for name in names)), None)
    return (model or chip, COMPUTE_CAPABILITIES[chip]) if chip else (None, None)


def power_mode(text):
    """The mode in the output of `nvpmodel -q`; None if it names none."""
    found = re.search(r"NV Power Mode: *(\S+)", text)
    return found.group(1) if found else None


def ask_power_mode():
    """The power mode that is set; None where nvpmodel is not there or says nothing."""
    try:
        done = subprocess.run(
            ["nvpmodel", "-q"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return power_mode(done.stdout)


def cuda_device():
    """Name and compute capability of the first GPU, asked of the driver; None and None without one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None, None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    major_attribute, minor_attribute = 75, 76
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), major_attribute, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), minor_attribute, device)
    )
    if failed:
        return None, None
    return name.value.decode("ascii", "replace"), f"{major.value}.{minor.value}"


def ram_bytes(root):
    """Memory of this machine; None if it does not say."""
    try:
        text = (root / "proc" / "meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"MemTotal: +(\d+) kB", text)
    return int(found.group(1)) * 1024 if found else None


def describe(root):
    """What this machine is."""
    model, capability = jetson(root)
    if capability is None:
        model, capability = cuda_device()
    release = l4t(root)
    return {
        "device": model,
        "compute_capability": capability,
        "l4t": release,
        "image": jetpack(release),
        "power_mode": ask_power_mode() if release else None,
        "ram_bytes": ram_bytes(root),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


# The build


def numbers(version):
    """The first two numbers of a version."""
    return tuple(int(part) for part in version.split(".")[:2])


def attempts(runtime, version, precision):
    """How the network is made, the best first: a name, whether it is strongly typed, and the builder's flags.

    TensorRT 11 and TensorRT-RTX take the precision from the ONNX alone; 8 from flags alone; between them both ways
    work, and where the first fails the next is tried.
    """
    flags = {"fp32": [], "fp16": ["FP16"], "int8": ["INT8", "FP16"], "bf16": ["BF16"]}[precision]
    typed, plain = ("strongly typed", True, []), ("without flags, in fp32", False, [])
    by_flags = [("with flags {}".format(" ".join(flags)), False, flags)] if flags else []
    if runtime == "tensorrt_rtx" or numbers(version) >= (11, 0):
        return [typed]
    if numbers(version) >= (10, 0):
        return [typed, *by_flags, plain]
    return [*by_flags, plain]


def make_network(trt, builder, typed):
    """An empty network."""
    known = trt.NetworkDefinitionCreationFlag
    wanted = ["STRONGLY_TYPED"] if typed else ["EXPLICIT_BATCH"]
    flags = 0
    for name in wanted:
        if hasattr(known, name):  # each is gone from the releases where it goes without saying
            flags |= 1 << int(getattr(known, name))
    return builder.create_network(flags)


def limit_workspace(trt, config, most):
    """Keep the builder from taking the memory that the rest of a small board needs."""
    if hasattr(config, "set_memory_pool_limit"):  # from 8.4
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, most)
    else:
        config.max_workspace_size = most


def watch(trt, config):
    """Print the builder's phases where it tells them (from 10.0)."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):
        def __init__(self):
            trt.IProgressMonitor.__init__(self)
            self.steps, self.said = {}, 0.0

        def phase_start(self, phase_name, parent_phase, num_steps):
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name, step):
            if time.time() - self.said >= 1:
                self.said = time.time()
                say("{}: {} of {}".format(phase_name, step + 1, self.steps.get(phase_name, "?")))
            return True

        def phase_finish(self, phase_name):
            self.steps.pop(phase_name, None)

    config.progress_monitor = Monitor()
    return config.progress_monitor


def make_logger(trt):
    """A logger that keeps what the builder and the parser complain of."""

    class Log(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.errors = []

        def log(self, severity, msg):
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self.errors.append(" ".join(str(msg).split())[:400])

    return Log()


def build_once(trt, onnx, model, recipe, attempt, target, workspace):
    """One attempt: the engine as bytes. Raises BuildError with what TensorRT said."""
    name, typed, flags = attempt
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = make_network(trt, builder, typed)
    parser = trt.OnnxParser(network, logger)
    # Weights in files of their own are found from the path alone.
    parsed = parser.parse_from_file(str(onnx)) if recipe.get("data_files") else parser.parse(model)
    if not parsed:
        said = [" ".join(str(parser.get_error(i).desc()).split()) for i in range(parser.num_errors)]
        raise BuildError(BUILD_FAILED, f"{name}: the parser refuses the model: {(said or logger.errors)[:1]}")
    config = builder.create_builder_config()
    limit_workspace(trt, config, workspace)
    for flag in flags:
        if not hasattr(trt.BuilderFlag, flag):
            raise BuildError(BUILD_FAILED, f"{name}: this TensorRT has no flag {flag}")
        config.set_flag(getattr(trt.BuilderFlag, flag))
    profile = builder.create_optimization_profile()
    for tensor, shapes in sorted(recipe["shapes"].items()):
        profile.set_shape(tensor, tuple(shapes["min"]), tuple(shapes["opt"]), tuple(shapes["max"]))
    if recipe["shapes"]:
        config.add_optimization_profile(profile)
    if target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(compute_capability(trt, target), 0)
    monitor = watch(trt, config)
    engine = builder.build_serialized_network(network, config)
    del monitor  # kept until here: the builder does not hold it
    if engine is None:
        raise BuildError(BUILD_FAILED, "{}: {}".format(name, (logger.errors or ["the builder gives no reason"])[0]))
    return bytes(engine)


def compute_capability(trt, target):
    """TensorRT-RTX's name for a compute capability. Raises BuildError for one that it does not build for."""
    name = "SM{}".format(target.replace(".", ""))
    known = trt.ComputeCapability.__members__
    if name not in known:
        these = ", ".join(sorted(each for each in known if each.startswith("SM")))
        raise BuildError(BUILD_FAILED, f"TensorRT-RTX builds no engine for compute capability {target}; known: {these}")
    return known[name]


# Files


def sha256(path):
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_json(value):
    """Hex SHA-256 of a value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii")).hexdigest()


def write_whole(path, data):
    """Write a file aside, flush it to the disk, and rename it into place."""
    descriptor, aside = tempfile.mkstemp(dir=str(path.parent), prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(aside).chmod(0o644)
        Path(aside).rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(aside).unlink()
        raise


@contextlib.contextmanager
def locked(folder):
    """One build at a time in a folder."""
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("waiting for another build")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def at_hand(engine, built_from):
    """What is known of an engine that is there and was built from the same; None if it has to be built."""
    note = engine.with_suffix(".json")
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if known.get("built_from") != built_from or not engine.is_file():
        return None
    return known if known.get("engine_sha256") == sha256(engine) else None


def load_runtime(names, wanted):
    """The module that builds, its name and version. Raises BuildError if none is installed."""
    for name in [wanted] if wanted else names:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        return module, name, str(module.__version__)
    tried = wanted or " or ".join(names)
    raise BuildError(NO_RUNTIME, f"Python {platform.python_version()} has no module {tried}")


def workspace_bytes(recipe, device):
    """What the builder may take: a share of the memory, or the recipe's own limit where that is not known."""
    if device["ram_bytes"]:
        return int(device["ram_bytes"] * recipe["workspace_share"])
    return int(recipe["workspace_bytes"])


def check_model(onnx, recipe):
    """The ONNX file's bytes. Raises BuildError if they, or its weights, are not those that the recipe is for."""
    try:
        model = onnx.read_bytes()
    except OSError as error:
        raise BuildError(BAD_BUNDLE, f"cannot read {onnx}: {error.strerror}") from error
    if hashlib.sha256(model).hexdigest() != recipe["onnx_sha256"]:
        raise BuildError(BAD_BUNDLE, f"{onnx} was changed: its SHA-256 is not the recipe's")
    for name, wanted in sorted(recipe.get("data_files", {}).items()):
        weights = onnx.parent / name
        try:
            found = sha256(weights)
        except OSError as error:
            raise BuildError(BAD_BUNDLE, f"cannot read {weights}: {error.strerror}") from error
        if found != wanted:
            raise BuildError(BAD_BUNDLE, f"{weights} was changed: its SHA-256 is not the recipe's")
    return model


def build(folder, recipe_file, engines, wanted, target):
    """Build the engine, or find it; what is known of it."""
    try:
        recipe = json.loads(recipe_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BuildError(BAD_BUNDLE, f"cannot read {recipe_file}: {error}") from error
    onnx = folder / recipe["onnx"]
    model = check_model(onnx, recipe)
    trt, runtime, version = load_runtime(recipe["runtimes"], wanted)
    device = describe(Path("/"))
    target = target or (recipe["compute_capability"] if runtime == "tensorrt_rtx" else None)
    if runtime != "tensorrt_rtx" and not device["compute_capability"]:
        raise BuildError(NO_RUNTIME, "no CUDA GPU is here; TensorRT builds on the GPU that the engine is for")
    if recipe.get("image") and device["image"] and recipe["image"] != device["image"]:
        say("the bundle was made for {}; this is {}".format(recipe["image"], device["image"]))
    built_from = {
        "onnx_sha256": recipe["onnx_sha256"],
        "recipe_sha256": sha256_json(recipe),
        "runtime": runtime,
        "version": version,
        "compute_capability": target or device["compute_capability"],
        "device": None if target else device["device"],
        "precision": recipe["precision"],
    }
    engines.mkdir(parents=True, exist_ok=True)
    engine = engines / f"{sha256_json(built_from)[:16]}.engine"
    with locked(engines):
        known = at_hand(engine, built_from)
        if known is not None:
            say(f"the engine at hand fits: {engine}")
            return dict(known, cached=True)
        return dict(_build(trt, onnx, model, recipe, engine, built_from, device, target), cached=False)


def _build(trt, onnx, model, recipe, engine, built_from, device, target):
    failures = []
    started = time.time()
    for attempt in attempts(built_from["runtime"], built_from["version"], recipe["precision"]):
        say("{} {}, {}".format(built_from["runtime"], built_from["version"], attempt[0]))
        try:
            data = build_once(trt, onnx, model, recipe, attempt, target, workspace_bytes(recipe, device))
        except BuildError as error:
            say(f"failed: {error}")
            failures.append(str(error))
            continue
        write_whole(engine, data)
        known = {
            "engine": engine.name,
            "engine_bytes": len(data),
            "engine_sha256": hashlib.sha256(data).hexdigest(),
            "built_from": built_from,
            "on_device": target is None,
            "typing": attempt[0],
            "failed_before": failures,
            "seconds": round(time.time() - started, 2),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "machine": device,
        }
        write_whole(engine.with_suffix(".json"), json.dumps(known, indent=2, sort_keys=True).encode("utf-8") + b"\n")
        say("built {} ({:.1f} MB) in {:.1f} s".format(engine, len(data) / 1e6, known["seconds"]))
        return known
    raise BuildError(
        BUILD_FAILED,
        "no engine could be built: {}. Run model.onnx with ONNX Runtime instead, on its CUDA provider or on the "
        "CPU".format("; ".join(failures)),
    )


def main(arguments):
    """Parse, build, print. Returns the exit code."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=here, help="where the ONNX file lies")
    parser.add_argument("--recipe", type=Path, help="build recipe [default: build.json in it]")
    parser.add_argument("--engines", type=Path, help="where engines go [default: engines in it]")
    parser.add_argument("--runtime", choices=["tensorrt", "tensorrt_rtx"], help="[default: the recipe's first]")
    parser.add_argument("--compute-capability", help="of an RTX GPU that is not here [default: the recipe's]")
    parser.add_argument("--report", type=Path, help="write what is known of the engine, or the failure, to this file")
    parser.add_argument("--describe", action="store_true", help="print what this device is, and stop")
    given = parser.parse_args(arguments)
    if given.describe:
        print(json.dumps(describe(Path("/")), indent=2, sort_keys=True))
        return 0
    code = 0
    try:
        known = build(
            given.folder,
            given.recipe or given.folder / "build.json",
            given.engines or given.folder / "engines",
            given.runtime,
            given.compute_capability,
        )
    except OSError as error:  # a full disk, a folder that is read-only
        code, known = BAD_BUNDLE, {"error": f"cannot keep the engine: {error}", "exit_code": BAD_BUNDLE}
    except BuildError as error:
        code, known = error.code, {"error": str(error), "exit_code": error.code}
    if code:
        print(f"Error: {known['error']}", file=sys.stderr)
    if given.report:
        write_whole(given.report.resolve(), json.dumps(known, sort_keys=True).encode("utf-8") + b"\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Engines: real ones for RTX GPUs, built without a GPU; and the script that builds on a device, as far as it goes."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.version import Version

from tests import stand_in_tensorrt, typed_onnx
from toolkit import target as targets
from toolkit.errors import InputError, MissingDependencyError, RefusedError
from toolkit.target import Target
from toolkit.tensorrt import builder, rungs
from toolkit.tensorrt import recipe as recipes

DATA_REPORT = {"encoding": {"max_length": 64}, "tokens": {"p90": 41.0}}
RTX = ["--runtime", "tensorrt_rtx"]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_engine", recipes.SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script: Any = load_script()


def folder_for(target: Target, artifact: Path, output: Path, **changed: Any) -> Path:
    """What a bundle has that an engine is built from."""
    output.mkdir()
    shutil.copy(artifact / "model.onnx", output / "model.onnx")
    described = json.loads((artifact / "artifact.json").read_text())
    recipe = recipes.make(artifact / "model.onnx", described, DATA_REPORT, target)
    recipes.write(output, {**recipe, **changed}, target)
    return output


# Engines for RTX GPUs


@pytest.mark.parametrize("target", ["a10", "rtx-4090", "rtx-5090"])
@pytest.mark.parametrize("which", ["fp16 encoder", "int8 network"])
def test_an_engine_is_built_for_a_gpu_that_is_not_here(
    which: str, target: str, typed: dict[str, Path], tmp_path: Path
) -> None:
    profile = targets.resolve(target)
    folder = folder_for(profile, typed[which], tmp_path / "bundle")
    lines: list[str] = []
    known = builder.run(folder, RTX, on_line=lines.append)
    engine = folder / "engines" / known["engine"]
    onnx_bytes = (folder / "model.onnx").stat().st_size
    assert engine.read_bytes()[:4] != b"\0" * 4
    assert known["engine_bytes"] == engine.stat().st_size > 0.9 * onnx_bytes  # the weights are in it
    assert profile.gpu is not None
    assert known["built_from"]["compute_capability"] == profile.gpu.compute_capability
    assert known["built_from"]["precision"] == which.split()[0]
    assert not known["on_device"]
    assert not known["cached"]
    assert known["typing"] == "strongly typed"
    assert any("built " in line for line in lines)
    assert sorted(path.suffix for path in engine.parent.iterdir() if path.name != ".lock") == [".engine", ".json"]


@pytest.mark.parametrize("which", ["fp16 encoder", "int8 network"])
def test_an_engine_for_the_a100_class_is_built_too(which: str, typed: dict[str, Path], tmp_path: Path) -> None:
    folder = folder_for(targets.resolve("a10"), typed[which], tmp_path / "bundle")
    known = builder.run(folder, [*RTX, "--compute-capability", "8.0"])
    assert known["built_from"]["compute_capability"] == "8.0"


@pytest.mark.parametrize("capability", ["8.7", "9.0", "11.0"])
def test_other_gpus_are_refused_with_those_that_are_known(
    capability: str, typed: dict[str, Path], tmp_path: Path
) -> None:
    folder = folder_for(targets.resolve("a10"), typed["int8 network"], tmp_path / "bundle")
    with pytest.raises(RefusedError, match=rf"compute capability {capability}; known: SM120, SM121, SM75, SM80"):
        builder.run(folder, [*RTX, "--compute-capability", capability])
    assert not list((folder / "engines").glob("*.*e*"))


def test_float_matrices_are_refused_for_turing(typed: dict[str, Path], tmp_path: Path) -> None:
    folder = folder_for(targets.resolve("t4"), typed["float network"], tmp_path / "bundle")
    with pytest.raises(RefusedError, match=r"FP32 GEMM is not supported.*ONNX Runtime instead"):
        builder.run(folder, RTX)


def test_an_engine_is_built_anew_only_when_something_differs(typed: dict[str, Path], tmp_path: Path) -> None:
    folder = folder_for(targets.resolve("rtx-4090"), typed["int8 network"], tmp_path / "bundle")
    first = builder.run(folder, RTX)
    assert builder.run(folder, RTX) == {**first, "cached": True}
    # Another GPU, another recipe.
    other = builder.run(folder, [*RTX, "--compute-capability", "8.6"])
    assert other["engine"] != first["engine"]
    recipe = json.loads((folder / "build.json").read_text())
    (folder / "build.json").write_text(json.dumps({**recipe, "workspace_share": 0.2}))
    assert builder.run(folder, RTX)["engine"] not in (first["engine"], other["engine"])
    (folder / "build.json").write_text(json.dumps(recipe))
    assert builder.run(folder, RTX)["cached"]
    # A file that was cut off, and one whose note is gone.
    engine = folder / "engines" / first["engine"]
    engine.write_bytes(engine.read_bytes()[:100])
    assert not builder.run(folder, RTX)["cached"]
    engine.with_suffix(".json").unlink()
    assert not builder.run(folder, RTX)["cached"]


def test_two_builds_at_a_time_wait_for_one_another(typed: dict[str, Path], tmp_path: Path) -> None:
    folder = folder_for(targets.resolve("rtx-4090"), typed["int8 network"], tmp_path / "bundle")
    command = [sys.executable, str(folder / "build_engine.py"), *RTX]
    both = [
        subprocess.Popen([*command, "--report", str(tmp_path / f"{n}.json")], stdout=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    known = [json.loads((tmp_path / f"{n}.json").read_text()) for n in range(2)]
    assert sorted(each["cached"] for each in known) == [False, True]


def test_a_build_dies_with_who_started_it(typed: dict[str, Path], tmp_path: Path) -> None:
    folder = folder_for(targets.resolve("rtx-4090"), typed["fp16 encoder"], tmp_path / "bundle")
    code = (
        "import sys; from pathlib import Path; from toolkit.tensorrt import builder; "
        f"builder.run(Path({str(folder)!r}), {RTX!r}, on_line=lambda line: print(line, flush=True))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert "strongly typed" in parent.stdout.readline()  # the builder has begun
    (started,) = builders(folder)
    os.kill(started, signal.SIGSTOP)  # it would end at its next line, whose reader has gone
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while builders(folder) and time.monotonic() < deadline:
        pass
    left = builders(folder)
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert not left


def builders(folder: Path) -> list[int]:
    """Processes that run the builder script on a folder; one that has ended has no command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            if str(folder) in words and str(recipes.SCRIPT) in words:
                found.append(int(path.parent.name))
    return found


def test_a_changed_onnx_file_is_not_built(typed: dict[str, Path], tmp_path: Path) -> None:
    folder = folder_for(targets.resolve("rtx-4090"), typed["int8 network"], tmp_path / "bundle")
    with (folder / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(InputError, match=r"model\.onnx was changed"):
        builder.run(folder, RTX)
    (folder / "build.json").unlink()
    with pytest.raises(InputError, match=r"cannot read .*build\.json"):
        builder.run(folder, RTX)


@pytest.fixture
def apart(typed: dict[str, Path], tmp_path: Path) -> Path:
    """The artifact of a network whose weights lie in a file of their own, as they do from 2 GB on."""
    import onnx

    folder = Path(shutil.copytree(typed["int8 network"], tmp_path / "apart"))
    model = onnx.load(folder / "model.onnx")
    (folder / "model.onnx").unlink()
    onnx.save_model(
        model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=64
    )
    described = json.loads((folder / "artifact.json").read_text())
    (folder / "artifact.json").write_text(json.dumps({**described, "data_files": ["model.onnx.data"]}))
    return folder


def test_weights_beside_the_graph_are_in_the_engine(apart: Path, typed: dict[str, Path], tmp_path: Path) -> None:
    target = targets.resolve("rtx-4090")
    folder = folder_for(target, apart, tmp_path / "bundle")
    shutil.copy(apart / "model.onnx.data", folder)
    known = builder.run(folder, RTX)
    whole = builder.run(folder_for(target, typed["int8 network"], tmp_path / "whole"), RTX)
    assert known["engine_bytes"] == pytest.approx(whole["engine_bytes"], rel=0.02)
    with (folder / "model.onnx.data").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(InputError, match=r"model\.onnx\.data was changed"):
        builder.run(folder, RTX)
    (folder / "model.onnx.data").unlink()
    with pytest.raises(InputError, match=r"cannot read .*model\.onnx\.data: No such file"):
        builder.run(folder, RTX)


def test_a_build_that_takes_too_long_is_ended(typed: dict[str, Path], tmp_path: Path) -> None:
    folder = folder_for(targets.resolve("rtx-4090"), typed["fp16 encoder"], tmp_path / "bundle")
    with pytest.raises(InputError, match=r"did not end within 0\.05 s"):
        builder.run(folder, RTX, timeout_seconds=0.05)


@pytest.mark.skipif(script.cuda_device()[1] is not None, reason="has a GPU")
def test_tensorrt_itself_wants_the_gpu(typed: dict[str, Path], tmp_path: Path) -> None:
    folder = folder_for(targets.resolve("jetson"), typed["int8 network"], tmp_path / "bundle")
    with pytest.raises(MissingDependencyError, match="no module tensorrt"):
        builder.run(folder, [])
    shutil.copy(stand_in_tensorrt.__file__, tmp_path / "bundle" / "tensorrt.py")
    environ = {**os.environ, "STAND_IN_VERSION": "10.3.0"}
    command = [sys.executable, str(folder / "build_engine.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert (done.returncode, done.stderr) == (
        3,
        "Error: no CUDA GPU is here; TensorRT builds on the GPU that the engine is for\n",
    )


# The script, on other Pythons and with other releases of TensorRT


def test_the_script_is_python_3_6_with_nothing_but_the_standard_library() -> None:
    tree = ast.parse(recipes.SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 6))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
    assert not imported & {"dataclasses", "__future__", "importlib.metadata", "tomllib", "graphlib", "zoneinfo"}


@pytest.mark.parametrize("python", ["python3.6", "python3.8", "python3.10", "python3.12"])
def test_the_script_runs_on_the_pythons_of_the_jetpacks(python: str) -> None:
    found = shutil.which(python)
    works = found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0
    if not works:
        pytest.skip(f"{python} is not here")
    done = subprocess.run([str(found), str(recipes.SCRIPT), "--describe"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["python"].startswith(python.removeprefix("python"))


RECIPE: Mapping[str, Any] = {"shapes": {"x": {"min": [1, 1], "opt": [1, 8], "max": [1, 16]}}, "precision": "int8"}


def attempted(trt: Any, precision: str, **more: Any) -> tuple[str, list[Any]]:
    """What the script tries with a TensorRT, until one attempt leads to an engine: that engine, and the calls. `more`
    goes into the recipe."""
    recipe = {**RECIPE, "precision": precision, **more}
    for attempt in script.attempts("tensorrt", trt.__version__, precision):
        try:
            engine = script.build_once(trt, Path("model.onnx"), b"onnx", recipe, attempt, None, 1000)
        except script.BuildError:
            continue
        return engine.decode(), trt.calls
    return "", trt.calls


@pytest.mark.parametrize(
    ("version", "precision", "engine"),
    [
        ("8.2.1", "fp16", "engine by FP16"),
        ("8.5.2", "int8", "engine by INT8, FP16"),
        ("8.6.2", "fp32", "engine by plain"),
        ("10.3.0", "fp16", "engine by typed"),
        ("10.16.2", "int8", "engine by typed"),
        ("11.4.1", "int8", "engine by typed"),
    ],
)
def test_each_release_gets_the_calls_that_it_has(version: str, precision: str, engine: str) -> None:
    trt = stand_in_tensorrt.make(version)
    built, calls = attempted(trt, precision)
    assert built == engine
    kinds = [name for name, _ in calls]
    assert ("workspace" in kinds) == (version == "8.2.1")
    assert ("pool" in kinds) == (version != "8.2.1")
    assert dict(calls)["profile"] == {"x": ((1, 1), (1, 8), (1, 16))}
    wanted = {"8": 1 << stand_in_tensorrt.EXPLICIT_BATCH, "10": 1 << stand_in_tensorrt.STRONGLY_TYPED, "11": 0}
    assert dict(calls)["network"] == wanted[version.split(".")[0]]


@pytest.mark.parametrize("version", ["8.2.1", "10.3.0", "11.4.1"])
def test_weights_beside_the_graph_are_found_from_its_path(version: str) -> None:
    trt = stand_in_tensorrt.make(version)
    _, calls = attempted(trt, "fp16", data_files={"model.onnx.data": "hash"})
    assert ("file", "model.onnx") in calls


@pytest.mark.parametrize(
    ("version", "refuses", "engine", "builds"),
    [
        ("10.3.0", ["typed"], "engine by INT8, FP16", [["typed"], ["INT8", "FP16"]]),
        ("10.3.0", ["typed", "INT8"], "engine by plain", [["typed"], ["INT8", "FP16"], ["plain"]]),
        ("10.3.0", ["typed", "INT8", "plain"], "", [["typed"], ["INT8", "FP16"], ["plain"]]),
        ("8.5.2", ["INT8"], "engine by plain", [["INT8", "FP16"], ["plain"]]),
        ("11.4.1", ["typed"], "", [["typed"]]),  # it has no other way
    ],
)
def test_what_fails_one_way_is_tried_the_next(version: str, refuses: list[str], engine: str, builds: Any) -> None:
    trt = stand_in_tensorrt.make(version, refuses)
    built, calls = attempted(trt, "int8")
    assert built == engine
    assert [ways for name, ways in calls if name == "build"] == builds


# The device


def device_files(root: Path, release: str | None, compatible: list[str]) -> Path:
    (root / "etc").mkdir(parents=True)
    (root / "proc" / "device-tree").mkdir(parents=True)
    if release is not None:
        (root / "etc" / "nv_tegra_release").write_text(release)
    (root / "proc" / "device-tree" / "compatible").write_bytes("\0".join([*compatible, ""]).encode())
    return root


@pytest.mark.parametrize(
    ("release", "compatible", "known"),
    [
        (
            "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8\n",
            ["nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"],
            ("Jetson Orin Nano 8GB Developer Kit", "8.7", "36.4.3", "jetpack-6.2"),
        ),
        (
            "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64\n",
            ["nvidia,p3737-0000+p3701-0005", "nvidia,p3701-0005", "nvidia,tegra234"],
            ("Jetson AGX Orin 64GB", "8.7", "35.4.1", "jetpack-5.1"),
        ),
        (
            "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64\n",
            ["nvidia,p3449-0000-b00+p3448-0002-b00", "nvidia,jetson-nano", "nvidia,tegra210"],
            ("p3448-0002", "5.3", "32.7.1", "jetpack-4.6"),
        ),
        (
            "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64\n",
            ["nvidia,p4071-0000+p3834-0008", "nvidia,p3834-0008", "nvidia,tegra264"],
            ("Jetson AGX Thor", "11.0", "38.2.0", "jetpack-7.0"),
        ),
        (None, ["raspberrypi,5-model-b", "brcm,bcm2712"], (None, None, None, None)),
        ("# something else\n", [], (None, None, None, None)),
    ],
)
def test_a_jetson_is_known_by_its_own_files(
    release: str | None, compatible: list[str], known: tuple[Any, ...], tmp_path: Path
) -> None:
    root = device_files(tmp_path / "root", release, compatible)
    assert (*script.jetson(root), script.l4t(root), script.jetpack(script.l4t(root))) == known


def test_the_images_that_the_script_knows_are_those_of_the_profiles() -> None:
    known = {image.id for name in targets.available() for image in targets.resolve(name).images}
    assert {name for _, name in script.JETPACKS} <= known


@pytest.mark.parametrize(
    ("said", "mode"),
    [
        ("NV Power Mode: MAXN_SUPER\n2\n", "MAXN_SUPER"),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W\n2\n", "MODE_15W"),
        ("NVPM ERROR: failed to read PARAM\n", None),
    ],
)
def test_the_power_mode_is_read(said: str, mode: str | None) -> None:
    assert script.power_mode(said) == mode


# The recipe


def test_shapes_follow_the_data(typed: dict[str, Path]) -> None:
    texts = json.loads((typed["fp16 encoder"] / "artifact.json").read_text())
    made = recipes.shapes(texts, DATA_REPORT)
    assert set(made) == {"input_ids", "attention_mask", "token_type_ids"}
    assert made["input_ids"] == {"min": [1, 1], "opt": [1, 48], "max": [1, 64]}
    images = json.loads((typed["int8 network"] / "artifact.json").read_text())
    side = typed_onnx.SIDE
    assert recipes.shapes(images, {}) == {
        "pixel_values": {place: [1, 1, side, side] for place in ("min", "opt", "max")}
    }


@pytest.mark.parametrize(
    ("version", "has", "has_not"),
    [
        ("8.2.1", ["--fp16", "--workspace=100", "--buildOnly"], ["--stronglyTyped", "--skipInference"]),
        ("8.5.2", ["--fp16", "--memPoolSize=workspace:100", "--buildOnly"], ["--stronglyTyped"]),
        ("8.6.2", ["--fp16", "--skipInference"], ["--stronglyTyped", "--buildOnly"]),
        ("10.3.0", ["--stronglyTyped", "--skipInference"], ["--fp16"]),
        ("11.4.1", ["--skipInference"], ["--fp16", "--stronglyTyped"]),
    ],
)
def test_trtexec_gets_the_flags_of_its_release(version: str, has: list[str], has_not: list[str]) -> None:
    recipe = {**RECIPE, "precision": "fp16", "onnx": "model.onnx", "workspace_bytes": 100 * 2**20}
    made = recipes.trtexec(recipe, Version(version))
    assert set(has) <= set(made)
    assert not set(has_not) & set(made)
    assert "--optShapes=x:1x8" in made


@pytest.mark.parametrize(
    ("target", "version"),
    [("jetson", "10.3.0"), ("jetson@jetpack-7.2", "10.16.2"), ("jetson-thor-t5000", "10.13.3"), ("rtx-4090", "10.3")],
)
def test_the_script_for_trtexec_is_for_the_image_of_the_target(target: str, version: str) -> None:
    assert recipes.version_of(targets.resolve(target)) == Version(version)


def test_nothing_in_a_name_reaches_the_shell(tmp_path: Path) -> None:
    """A stand-in for trtexec that writes its arguments down."""
    trtexec = tmp_path / "trtexec"
    save = 'for a; do case "$a" in --saveEngine=*) : > "${a#*=}";; esac; done'
    trtexec.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > arguments\n{save}\n')
    trtexec.chmod(0o755)
    name = "x; touch owned; $(touch owned) 'y'"
    shapes = {name: RECIPE["shapes"]["x"]}
    recipe = {**RECIPE, "shapes": shapes, "onnx": "model.onnx", "workspace_bytes": 2**20}
    (tmp_path / "build_engine.sh").write_text(recipes.shell_script(recipe, Version("10.3")))
    environ = {**os.environ, "TRTEXEC": str(trtexec)}
    subprocess.run(["sh", str(tmp_path / "build_engine.sh")], env=environ, check=True, cwd="/")
    assert f"--minShapes={name}:1x1" in (tmp_path / "arguments").read_text().splitlines()
    assert not (tmp_path / "owned").exists()
    assert [path.name for path in (tmp_path / "engines").iterdir()] == ["trtexec.engine"]


# The rung that an engine on the device reaches


def test_an_engine_that_the_device_built_is_rung_3_as_long_as_it_fits(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"typed")
    validation = {"rung": "L2", "steps": {name: {"passed": True, "detail": ""} for name in ("L0", "L1", "L2")}}
    engine = tmp_path / "engines" / "0.engine"
    engine.parent.mkdir()
    engine.write_bytes(b"engine")
    known = {
        "engine": "0.engine",
        "engine_sha256": script.sha256(engine),
        "on_device": True,
        "typing": "strongly typed",
        "built_from": {
            "onnx_sha256": script.sha256(tmp_path / "model.onnx"),
            "device": "Jetson",
            "compute_capability": "8.7",
            "version": "10.3.0",
        },
    }

    def rung(**changed: Any) -> str:
        engine.with_suffix(".json").write_text(json.dumps({**known, **changed}))
        found = rungs.with_engines(validation, tmp_path, tmp_path / "model.onnx")
        assert found is not None
        return str(found["rung"])

    assert rung() == "L3"
    assert rung(on_device=False) == "L2"  # built without the GPU
    assert rung(built_from={**known["built_from"], "onnx_sha256": "0"}) == "L2"  # of another model
    assert rung(engine_sha256="0") == "L2"
    engine.with_suffix(".json").write_text("{")
    assert rungs.with_engines(validation, tmp_path, tmp_path / "model.onnx") == validation
    assert rungs.with_engines(None, tmp_path, tmp_path / "model.onnx") is None

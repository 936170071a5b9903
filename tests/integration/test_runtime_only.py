"""What a device has: a fresh environment with one `runtime-` extra gives the same answers as the workstation."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

import toolkit
from tests.engine_bundles import WITHOUT_TORCH, engine_bundle

CHECKOUT = Path(__file__).parents[2]
FRAMEWORKS = {
    "torch", "transformers", "datasets", "onnx", "onnxscript", "litert-torch", "ai-edge-quantizer", "jax", "nncf",
}  # fmt: skip
DISTRIBUTION = {"litert": "ai-edge-litert", "onnxruntime": "onnxruntime", "openvino": "openvino"}


@dataclass(frozen=True)
class Device:
    """A virtual environment with only the runtime of one engine, and nothing of the checkout on its path."""

    engine: str
    folder: Path

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        program = self.folder / "bin" / command[0]
        return subprocess.run(
            [program, *map(str, command[1:])],
            capture_output=True, text=True, env=environ, cwd=self.folder, timeout=300, check=False,
        )  # fmt: skip


def install(engine: str, folder: Path) -> Device:
    """What README tells a user of a device to type, with the tested versions."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
    device = Device(engine, folder)
    wanted = f"edge-deployment-toolkit[runtime-{engine}] @ {CHECKOUT.as_uri()}"
    done = device.run("pip", "install", "-q", "--no-cache-dir", "-c", CHECKOUT / "constraints.txt", wanted)
    assert done.returncode == 0, done.stderr
    return device


@pytest.fixture(scope="module")
def installations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[Device]]:
    """The environments, made side by side."""
    folder = tmp_path_factory.mktemp("devices")
    with ThreadPoolExecutor(len(WITHOUT_TORCH)) as pool:
        return {engine: pool.submit(install, engine, folder / engine) for engine in WITHOUT_TORCH}


@pytest.fixture(scope="module", params=WITHOUT_TORCH)
def device(request: pytest.FixtureRequest, installations: dict[str, Future[Device]]) -> Device:
    return installations[request.param].result()


@pytest.fixture(scope="module")
def made_here(encoder: Path, reviews: Path) -> functools.partial[Path]:
    return functools.partial(engine_bundle, encoder=encoder, reviews=reviews)


def test_installs_one_engine_and_no_framework(device: Device) -> None:
    listed = device.run("pip", "list", "--format=json")
    names = {re.sub(r"[-_.]+", "-", package["name"]).lower() for package in json.loads(listed.stdout)}
    others = {name for engine, name in DISTRIBUTION.items() if engine != device.engine}
    assert DISTRIBUTION[device.engine] in names
    assert "tokenizers" in names
    assert not names & (FRAMEWORKS | others)
    checked = device.run("pip", "check")
    assert checked.returncode == 0, checked.stdout


def test_answers_as_the_full_environment_does(
    device: Device, made_here: functools.partial[Path], sentences: list[tuple[str, str]]
) -> None:
    folder = made_here(device.engine)
    texts = [text for text, _ in sentences[:40]] + ["", "🙂 中文", "long " * 400]
    code = (
        "import json, sys, toolkit\n"
        "answers = toolkit.load(sys.argv[1])(json.loads(sys.argv[2]))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "print(json.dumps([toolkit.__file__, answers]))"
    )
    done = device.run("python", "-c", code, folder, json.dumps(texts))
    assert done.returncode == 0, done.stderr
    package, answers = json.loads(done.stdout)
    assert Path(package).is_relative_to(device.folder)  # the installed one, not the checkout
    pipeline = toolkit.load(folder)
    for here, there in zip(pipeline(texts), answers, strict=True):
        assert here["label"] == there["label"]
        assert here["scores"] == pytest.approx(there["scores"], rel=0, abs=1e-6)
    pipeline.close()


def test_verify_and_bench_work(device: Device, made_here: functools.partial[Path]) -> None:
    folder = made_here(device.engine)
    verified = device.run("toolkit", "verify", folder, "--json")
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["failures"] == []
    assert json.loads(verified.stdout)["golden_examples"] == 8
    benched = device.run("toolkit", "bench", folder, "--seconds", "0.2", "--json")
    assert benched.returncode == 0, benched.stderr
    assert json.loads(benched.stdout)["engine"]["engine"] == device.engine


def test_the_light_core_works_there(device: Device, made_here: functools.partial[Path]) -> None:
    for command in (["targets", "lint"], ["targets", "--json"], ["doctor"], ["inspect", made_here(device.engine)]):
        done = device.run("toolkit", *command)
        assert done.returncode == 0, done.stderr
    assert " profiles are clean" in device.run("toolkit", "targets", "lint").stdout


def test_what_it_cannot_do_is_one_line(device: Device, made_here: functools.partial[Path], tuned: Path) -> None:
    other = next(engine for engine in WITHOUT_TORCH if engine != device.engine)
    done = device.run("toolkit", "verify", made_here(other))
    assert done.returncode == 3
    assert f"pip install 'edge-deployment-toolkit[runtime-{other}]'" in done.stderr
    exported = device.run(
        "toolkit", "export", tuned, "--engine", "onnxruntime", "-o", device.folder / "out", "--cache-dir",
        device.folder / "cache",
    )  # fmt: skip
    assert exported.returncode == 3
    assert "pip install 'edge-deployment-toolkit[convert]'" in exported.stderr

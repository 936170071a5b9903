"""Fixtures that many tests share: the real MiniLM cut to two layers, real sentences, and one real conversion of them.

Everything comes from the extra `demo`; nothing is downloaded and nothing is committed.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import toolkit
from tests import profiles
from tests.networks import image_folder, network_file
from tests.small_inputs import ROWS, csv_text, prepare, tiny_checkpoint
from toolkit import demo

LAYERS = 2
SENTENCES = 1600
FEW = 300
PICTURE_SIDE = 24
# Two layers on 1,152 sentences learn something at this rate; at the default one they do not.
TRAINING: dict[str, Any] = {"epochs": 2, "learning_rate": 5e-4}
TRAINING_OPTIONS = ("--epochs", "2", "--learning-rate", "5e-4")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: "integration" not in item.path.parts)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All tests share one stage cache, never the user's: a fresh one, or `$TOOLKIT_TEST_CACHE` to repeat quickly."""
    kept = os.environ.get("TOOLKIT_TEST_CACHE")
    base = tmp_path_factory.getbasetemp()
    in_worker = "PYTEST_XDIST_WORKER" in os.environ
    folder = Path(kept) if kept else (base.parent if in_worker else base) / "stage-cache"
    previous = os.environ.get("TOOLKIT_CACHE")
    os.environ["TOOLKIT_CACHE"] = str(folder)
    yield folder
    if previous is None:
        del os.environ["TOOLKIT_CACHE"]
    else:
        os.environ["TOOLKIT_CACHE"] = previous


@pytest.fixture(scope="session")
def cache_folder(_own_cache: Path) -> Path:
    """The stage cache that the session's tests share."""
    return _own_cache


@pytest.fixture(scope="session")
def sentences() -> list[tuple[str, str]]:
    """Real sentences of the demo with their labels, `negative` and `positive` in turn: (text, label)."""
    found = demo.find()
    with found.data.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["source"] == "rotten_tomatoes"]
    negative = [row["text"] for row in rows if row["label"] == "0"]
    positive = [row["text"] for row in rows if row["label"] == "1"]
    pairs = []
    for bad, good in zip(negative, positive, strict=False):
        pairs += [(bad, "negative"), (good, "positive")]
    return pairs


def write_csv(path: Path, pairs: list[tuple[str, str]]) -> Path:
    """A CSV file with the columns text and label."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows(pairs)
    return path


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory, sentences: list[tuple[str, str]]) -> Path:
    """A CSV of real labelled sentences."""
    return write_csv(tmp_path_factory.mktemp("data") / "reviews.csv", sentences[:SENTENCES])


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory, sentences: list[tuple[str, str]]) -> Path:
    """A CSV of as many as a stage needs that has to learn something."""
    return write_csv(tmp_path_factory.mktemp("data") / "few.csv", sentences[:FEW])


@pytest.fixture(scope="session")
def prepared(encoder: Path, few: Path) -> Path:
    """Those, as the stage `prepare` splits them."""
    folder = few.parent / "prepared"
    prepare(encoder, few, folder)
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real MiniLM encoder cut to its first two layers: an untrained classifier, as a Hugging Face folder."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path_factory.mktemp("models") / "minilm-2-layers"
    source = demo.find().model
    model = AutoModel.from_pretrained(source, dtype=torch.float32)
    model.encoder.layer = model.encoder.layer[:LAYERS]
    model.config.num_hidden_layers = LAYERS
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def converted(encoder: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One real conversion for this machine: fine-tuned, exported, quantized, gated."""
    output = tmp_path_factory.mktemp("bundles") / "converted"
    return toolkit.convert(encoder, target="host", data=str(reviews), output=str(output), min_score="97%", **TRAINING)


@pytest.fixture(scope="session")
def bundle(converted: Any) -> Path:
    """The folder of that conversion. Read it only; copy it to change it."""
    return Path(converted.path)


@pytest.fixture(scope="session")
def tuned(converted: Any, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fine-tuned two-layer checkpoint of that conversion, as a Hugging Face folder."""
    import shutil

    receipts = [json.loads(path.read_text()) for path in (Path(converted.path) / "receipts").glob("*.json")]
    key = next(receipt["key"] for receipt in receipts if receipt["stage"] == "finetune")
    folder = tmp_path_factory.mktemp("models") / "tuned"
    shutil.copytree(cache_folder / "stages" / key / "output", folder)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per kind of picture, for the small network."""
    return image_folder(tmp_path_factory.mktemp("pictures") / "images", 40)


@pytest.fixture(scope="session")
def small_network(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network of convolutions, taught to tell the pictures apart: a checkpoint folder with code."""
    from toolkit import steps

    work = tmp_path_factory.mktemp("network")
    options = {
        "model": f"{network_file(work)}:build", "task": "image-classification", "data": str(pictures), "epochs": 4,
        "learning_rate": 1e-2, "batch_size": 16, "option": {"size": PICTURE_SIDE, "channels": 1},
    }  # fmt: skip
    steps.finetune(str(work / "tuned"), options)
    return work / "tuned"


@pytest.fixture(scope="session")
def typed(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Artifact folders for TensorRT: that checkpoint in fp16, and a small network of convolutions."""
    from tests import typed_onnx

    folder = tmp_path_factory.mktemp("typed")
    return {
        "fp16 encoder": typed_onnx.encoder(tuned, folder),
        "int8 network": typed_onnx.convolutions(folder, "static-int8"),
        "float network": typed_onnx.convolutions(folder, None),
    }


@pytest.fixture(scope="module")
def torch_as_before() -> Iterator[None]:
    """Training stages set torch's threads and determinism for their process, which in a test is everybody's."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """The file of a small valid target profile."""
    path = tmp_path / "my-board.yaml"
    path.write_text(profiles.BOARD, encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A CSV of a dozen labelled rows."""
    path = tmp_path / "data.csv"
    path.write_text(csv_text(ROWS), encoding="utf-8")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An untrained checkpoint with a handful of weights."""
    return tiny_checkpoint(tmp_path / "model")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A checkpoint with a handful of weights, trained on two labels."""
    return tiny_checkpoint(tmp_path / "trained", labels=["bad", "good"])


def run_toolkit(
    *arguments: str | Path, environ: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, as a user runs it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(toolkit.__file__).parent.parent), **(environ or {})}
    return subprocess.run(
        [sys.executable, "-m", "toolkit", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        timeout=timeout,
        check=False,
    )

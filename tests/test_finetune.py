"""Fine-tuning for real, on the two-layer encoder and a few hundred sentences: what it writes, that a seed means the
same bytes, and that neither a kill nor Ctrl-C costs more than the epoch at hand."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toolkit
from tests.conftest import write_csv
from tests.small_inputs import prepare
from toolkit import conversion, stages, steps, training
from toolkit.devices import local
from toolkit.runner import Silent
from toolkit.stages import finetune
from toolkit.stages.finetune import Parameters
from toolkit.training import grouped_batches, learning_rate_factor

pytestmark = pytest.mark.usefixtures("torch_as_before")

EPOCHS = 3


def test_every_example_is_in_one_batch_per_epoch() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, size=333).tolist()
    batches = grouped_batches(lengths, 16, np.random.default_rng(1))
    assert sorted(index for batch in batches for index in batch) == list(range(333))
    assert sorted(map(len, batches))[-20:] == [16] * 20
    assert len(batches) == 21


def test_batches_hold_similar_lengths() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, size=800).tolist()

    def padding(batches: list[list[int]]) -> int:
        return sum(max(lengths[i] for i in batch) * len(batch) - sum(lengths[i] for i in batch) for batch in batches)

    unsorted = [list(range(start, start + 16)) for start in range(0, 800, 16)]
    assert padding(grouped_batches(lengths, 16, np.random.default_rng(1))) < 0.1 * padding(unsorted)


def test_batches_follow_the_seed_and_are_shuffled() -> None:
    lengths = list(range(5, 165))
    first = grouped_batches(lengths, 8, np.random.default_rng([0, 1]))
    assert first == grouped_batches(lengths, 8, np.random.default_rng([0, 1]))
    assert first != grouped_batches(lengths, 8, np.random.default_rng([0, 2]))
    assert first != sorted(first)


def test_learning_rate_warms_up_and_decays() -> None:
    factors = [learning_rate_factor(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == factors[10] == 1.0
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 0.02
    assert learning_rate_factor(100, 100, 10) == 0
    assert learning_rate_factor(0, 5, 0) == 1.0


@pytest.fixture(scope="module")
def csv_file(tmp_path_factory: pytest.TempPathFactory, sentences: list[tuple[str, str]]) -> Path:
    return write_csv(tmp_path_factory.mktemp("finetune") / "some.csv", sentences[:300])


@pytest.fixture(scope="module")
def prepared(encoder: Path, csv_file: Path) -> Path:
    folder = csv_file.parent / "prepared"
    prepare(encoder, csv_file, folder)
    return folder


Train = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def train(encoder: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """The stage, run in this process."""

    def run(
        *, seed: int = 0, progress: Any = None, resume: Path | None = None, **parameters: Any
    ) -> tuple[Path, dict[str, Any]]:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # a process of the stage's own has none
        output = tmp_path_factory.mktemp("tuned")
        context = stages.Context(
            task="text-classification", seed=seed, data=prepared, resume=resume, progress=progress or stages._ignore
        )
        given = Parameters(**{"epochs": EPOCHS, "max_length": 64, **parameters})
        return output, finetune.run(encoder, output, given, context)

    return run


@pytest.fixture(scope="module")
def undisturbed(train: Train) -> tuple[Path, dict[str, Any]]:
    return train()


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def digest(model: Any) -> str:
    state = {name: value.detach().numpy().tobytes() for name, value in model.state_dict().items()}
    return hashlib.sha256(b"".join(state[name] for name in sorted(state))).hexdigest()


def test_output_is_a_plain_hugging_face_folder(undisturbed: tuple[Path, dict[str, Any]], encoder: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, report = undisturbed
    names = {path.name for path in folder.rglob("*")}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert all(path.stat().st_mode & 0o044 for path in folder.iterdir())
    model, loading = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.config.label2id == {"negative": 0, "positive": 1}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answer = model(**tokenizer("a film", return_tensors="pt")).logits
    assert answer.shape == (1, 2)
    assert weights(folder) != weights(encoder)
    assert [entry["epoch"] for entry in report["history"]] == [1, 2, 3]
    assert all(entry["steps"] == 7 and entry["loss"] > 0 for entry in report["history"])
    scores = [entry["validation_score"] for entry in report["history"]]
    assert report["validation_score"] == max(scores)
    assert report["best_epoch"] == scores.index(max(scores)) + 1
    assert (report["interrupted"], report["processes"], report["bf16"]) == (False, 1, False)


def test_training_learns(train: Train) -> None:
    _, report = train(epochs=5, learning_rate=5e-4, batch_size=8, patience=5)
    losses = [entry["loss"] for entry in report["history"]]
    assert losses[-1] < 0.5 * losses[0]
    assert report["validation_score"] > 0.6


def test_same_seed_same_bytes_and_another_seed_others(train: Train, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    again, report = train()
    other, _ = train(seed=1)
    assert weights(again) == weights(undisturbed[0])
    assert report == undisturbed[1]
    assert weights(other) != weights(again)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("during", [2, 3])
def test_a_resumed_run_ends_with_the_same_bytes(
    train: Train, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path, during: int
) -> None:
    def fail(done: int, total: int, text: str) -> None:
        if text.startswith(f"epoch {during} of") and done % 7 == 4:
            raise KilledError

    with pytest.raises(KilledError):
        train(progress=fail, resume=tmp_path)
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.pt"))
    seen: list[str] = []
    output, report = train(progress=lambda done, total, text: seen.append(text), resume=tmp_path)
    assert not any(text.startswith("epoch 1") for text in seen)
    assert any(text.startswith(f"epoch {during}") for text in seen)
    assert weights(output) == weights(undisturbed[0])
    assert report == undisturbed[1]


def scripted(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> list[str]:
    """Let validation give these scores; returns the list that fills with the weights' hashes at each."""
    seen: list[str] = []
    remaining = iter(scores)

    def validate(self: Any) -> float:
        seen.append(digest(self.model))
        return next(remaining)

    monkeypatch.setattr(training.Trainer, "validate", validate)
    return seen


def saved(folder: Path) -> str:
    from transformers import AutoModelForSequenceClassification

    return digest(AutoModelForSequenceClassification.from_pretrained(folder))


def test_training_stops_early_and_keeps_the_best_epoch(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = scripted(monkeypatch, [0.5, 0.7, 0.7, 0.6, 0.9])
    output, report = train(epochs=5, patience=2)
    assert report["epochs_run"] == 4
    assert report["best_epoch"] == 2
    assert saved(output) == seen[1] != seen[3]


def interrupt_at(start: str) -> Callable[[int, int, str], None]:
    sent = []

    def progress(done: int, total: int, text: str) -> None:
        if text.startswith(start) and not sent:
            sent.append(text)
            os.kill(os.getpid(), signal.SIGINT)

    return progress


def test_an_interrupted_epoch_does_not_replace_the_best_whole_one(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = scripted(monkeypatch, [0.8, 0.9, 0.5, 0.5])
    before = signal.getsignal(signal.SIGINT)
    early, report = train(progress=interrupt_at("epoch 2"), resume=tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert report["interrupted"]
    assert report["history"][1]["steps"] == 1
    assert saved(early) == seen[1]  # the better score, and all that the user waited for
    whole, report = train(resume=tmp_path)
    assert not report["interrupted"]
    assert len(seen) == 4
    assert saved(whole) == seen[0]


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    train: Train, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, report = train(progress=interrupt_at("epoch 2"), resume=tmp_path)
    assert report["interrupted"]
    output, report = train(resume=tmp_path)
    assert weights(output) == weights(undisturbed[0])
    assert report == undisturbed[1]


def test_ctrl_c_while_loading_still_gives_a_checkpoint(train: Train) -> None:
    output, report = train(progress=interrupt_at("loading"))
    assert report["interrupted"]
    assert report["history"][0]["steps"] == 1
    assert len(saved(output)) == 64


@pytest.mark.parametrize(("isa", "expected"), [([], False), (["avx512_bf16"], True), (["amx_bf16"], True)])
def test_bf16_is_chosen_by_the_cpu(
    encoder: Path, csv_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, isa: list[str], expected: bool
) -> None:
    monkeypatch.setattr(local, "isa", lambda: isa)
    options = conversion.Options(
        model=str(encoder), data=str(csv_file), target="raspberry-pi-5", output=str(tmp_path / "o")
    )
    made = conversion.plan(options)
    assert made.recipe.finetune.parameters is not None
    assert made.recipe.finetune.parameters["bf16"] is expected


def test_bf16_is_recorded_and_weights_stay_float32(train: Train, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    from safetensors.numpy import load_file

    output, report = train(epochs=1, bf16=True)
    assert report["bf16"]
    tensors = load_file(output / "model.safetensors")
    assert {str(value.dtype) for value in tensors.values()} == {"float32"}
    assert weights(output) != weights(undisturbed[0])


def test_tensorboard_gets_loss_and_score(train: Train, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, report = train(epochs=2, tensorboard=str(tmp_path / "logs"))
    logs = EventAccumulator(str(tmp_path / "logs"))
    logs.Reload()
    assert set(logs.Tags()["scalars"]) == {"train/loss", "validation/score"}
    written = [event.value for event in logs.Scalars("validation/score")]
    assert written == pytest.approx([entry["validation_score"] for entry in report["history"]])


# The command line, as a user runs it.


def start(*arguments: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(toolkit.__file__).parent.parent)}
    return subprocess.Popen(
        [sys.executable, "-m", "toolkit", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[str], text: str = "") -> None:
    """Wait until a file that matches `pattern` holds `text`."""
    until = time.monotonic() + 120
    while True:
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                if text in path.read_text():
                    return
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_text()


class Texts(Silent):
    """A reporter that keeps what fine-tuning said."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def progress(self, title: str, done: int, total: int, text: str) -> None:
        if title == "finetune":
            self.seen.append(text)


def test_ctrl_c_keeps_the_best_epoch_and_the_next_run_goes_on(encoder: Path, csv_file: Path, tmp_path: Path) -> None:
    given = {"data": str(csv_file), "epochs": 4, "cache_dir": str(tmp_path / "cache")}
    process = start(
        "finetune", encoder, "--data", csv_file, "--epochs", 4, "--cache-dir", given["cache_dir"], "-o", tmp_path / "a"
    )
    wait_for(tmp_path / "cache", "resume/*/state/progress.json", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "keeping the best epoch" in err
    assert "Interrupted" in out
    receipt = json.loads((tmp_path / "a" / "receipt.json").read_text())
    assert receipt["report"]["interrupted"]
    assert 1 <= receipt["report"]["epochs_run"] < 4
    assert len(saved(tmp_path / "a")) == 64

    texts = Texts()
    result = steps.finetune(str(tmp_path / "b"), {"model": str(encoder), **given}, texts)
    assert not result["interrupted"]
    assert not any(text.startswith("epoch 1 ") for text in texts.seen)
    assert any(text.startswith("epoch ") for text in texts.seen)
    again = Texts()
    assert steps.finetune(str(tmp_path / "c"), {"model": str(encoder), **given}, again)["history"] == result["history"]
    assert again.seen == []


def test_ctrl_c_while_the_stage_starts_is_kept_for_it_and_the_second_ends_all(
    encoder: Path, csv_file: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    command = ("finetune", encoder, "--data", csv_file, "--cache-dir", cache, "-o")
    process = start(*command, tmp_path / "a")
    wait_for(cache, "work/*/request.json", process, '"stage": "finetune"')
    request = next(cache.glob("work/*/request.json"))
    while not any(str(request) in command for command in command_lines()):
        time.sleep(0.005)
    time.sleep(0.02)  # its interpreter is starting
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    report = json.loads((tmp_path / "a" / "receipt.json").read_text())["report"]
    assert report["interrupted"]
    assert report["history"][0]["steps"] == 1

    process = start(*command, tmp_path / "b")
    wait_for(cache, "work/*/request.json", process, '"stage": "finetune"')
    for _ in range(2):
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert not (tmp_path / "b").exists()
    assert not any((cache / "work").iterdir())


SPY = """
import hashlib, os, sys
from pathlib import Path
from toolkit import training

validate = training.Trainer.validate

def spied(self):
    model = self.accelerator.unwrap_model(self.model)
    text = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
    score = validate(self)
    with (Path(__file__).parent / f"rank-{os.environ['RANK']}.txt").open("a") as stream:
        print(text, score, len(self.validation.labels), file=stream)
    return score

training.Trainer.validate = spied
from toolkit.__main__ import main
main()
"""


def test_two_processes_train_one_checkpoint(encoder: Path, sentences: list[tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / "spied_toolkit.py").write_text(SPY)
    data = write_csv(tmp_path / "some.csv", sentences[:207])
    # What `accelerate launch` runs for several devices; for several processes on a CPU it would want MPI.
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "spied_toolkit", "finetune", encoder, "--data", data, "--epochs", "2", "--batch-size", "2",
        "--tensorboard", tmp_path / "logs", "-o", tmp_path / "tuned", "--json",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(toolkit.__file__).parent.parent)]),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)  # one document: the other process is silent
    receipt = json.loads((tmp_path / "tuned" / "receipt.json").read_text())["report"]
    assert result["processes"] == receipt["processes"] == 2
    ranks = [(tmp_path / f"rank-{rank}.txt").read_text() for rank in (0, 1)]
    assert ranks[0] == ranks[1]  # the same weights and the same score after each epoch
    lines = [line.split() for line in ranks[0].splitlines()]
    assert len(lines) == 2
    assert lines[0][0] != lines[1][0]
    assert int(lines[0][2]) % 8 == 1  # the two shares of the validation split need different numbers of batches
    assert len(saved(tmp_path / "tuned")) == 64
    assert len(list((tmp_path / "logs").iterdir())) == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

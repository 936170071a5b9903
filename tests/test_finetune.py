"""`toolkit finetune` as a user runs it: Ctrl-C keeps what was learned, and several processes train one checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import toolkit
from tests.conftest import write_csv
from tests.small_inputs import one_layer
from tests.stage_runs import saved
from toolkit import steps
from toolkit.runner import Silent


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


def test_ctrl_c_keeps_the_best_epoch_and_the_next_run_goes_on(encoder: Path, few: Path, tmp_path: Path) -> None:
    given = {"data": str(few), "epochs": 4, "cache_dir": str(tmp_path / "cache")}
    process = start(
        "finetune",
        encoder,
        "--data",
        few,
        "--epochs",
        4,
        "--cache-dir",
        given["cache_dir"],
        "-o",
        tmp_path / "a",
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
    encoder: Path, few: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    command = ("finetune", encoder, "--data", few, "--cache-dir", cache, "-o")
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
        print(text, score[0], len(self.validation.labels), file=stream)
    return score

training.Trainer.validate = spied
from toolkit.__main__ import main
main()
"""


def in_two_processes(folder: Path, *arguments: Any) -> tuple[dict[str, Any], list[list[str]]]:
    """`toolkit finetune` in two processes: what it printed, and of each epoch the weights' hash, the score and the
    size of the validation split, which both processes must agree on."""
    (folder / "spied_toolkit.py").write_text(SPY)
    # What `accelerate launch` runs for several devices; for several processes on a CPU it would want MPI.
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "spied_toolkit", "finetune", *arguments, "-o", folder / "tuned", "--json",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(Path(toolkit.__file__).parent.parent)]),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [(folder / f"rank-{rank}.txt").read_text() for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    return json.loads(done.stdout), [line.split() for line in ranks[0].splitlines()]  # the other process is silent


def test_two_processes_train_one_checkpoint(encoder: Path, sentences: list[tuple[str, str]], tmp_path: Path) -> None:
    data = write_csv(tmp_path / "some.csv", sentences[:207])
    result, epochs = in_two_processes(
        tmp_path, encoder, "--data", data, "--epochs", "2", "--batch-size", "2", "--tensorboard", tmp_path / "logs"
    )
    receipt = json.loads((tmp_path / "tuned" / "receipt.json").read_text())["report"]
    assert result["processes"] == receipt["processes"] == 2
    assert len(epochs) == 2
    assert epochs[0][0] != epochs[1][0]
    assert int(epochs[0][2]) % 8 == 1  # the two shares of the validation split need different numbers of batches
    assert len(saved(tmp_path / "tuned")) == 64
    assert len(list((tmp_path / "logs").iterdir())) == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_two_processes_agree_on_what_two_passes_teach(few: Path, tmp_path: Path) -> None:
    """Two forward passes and one gradient more, and still the gradients of both processes count."""
    result, epochs = in_two_processes(
        tmp_path, one_layer(tmp_path / "model"), "--data", few, "--epochs", "2", "--batch-size", "8", "--augment",
        "word_dropout=0.1", "--training", "r_drop=1", "--training", "adversarial=0.5", "--training", "accumulate=2",
    )  # fmt: skip
    assert result["processes"] == 2
    assert epochs[0][0] != epochs[1][0]

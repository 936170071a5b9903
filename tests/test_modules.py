"""A user's own network as a checkpoint: `FILE.py:FUNCTION`, its weights, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_toolkit
from tests.networks import network_file
from toolkit import checkpoint, modules, network
from toolkit.errors import InputError
from toolkit.tasks.image_classification import TASK

ENCODING = {"resize": {"height": 24, "width": 24}, "channels": 1}
LABELS = ["dots", "stripes", "waves", "others"]


@pytest.fixture
def code(tmp_path: Path) -> Path:
    return network_file(tmp_path)


def imported(
    code: Path, cache: Path, function: str = "build", weights: Path | None = None, pickle: bool = False
) -> Path:
    return modules.imported(f"{code}:{function}", str(weights) if weights else None, cache, pickle)


def test_names_are_told_from_folders_and_hub_ids() -> None:
    assert modules.parse("net.py:build") == (Path("net.py"), "build")
    assert modules.parse("/a b/ü.py:make_it") == (Path("/a b/ü.py"), "make_it")
    assert modules.parse("organisation/name") is None
    assert modules.parse("folder") is None


def test_a_network_is_built_with_what_the_task_offers(code: Path, tmp_path: Path) -> None:
    folder = imported(code, tmp_path / "cache")
    assert imported(code, tmp_path / "cache") == folder
    net = network.load(folder, TASK, LABELS, ENCODING)
    assert net.net.head.out_features == 4
    assert net.net.stem[0].in_channels == 1
    net.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["arguments"] == {"classes": 4, "channels": 1}
    found = checkpoint.inspect(tmp_path, TASK)
    assert found.labels == LABELS
    assert TASK.is_convolutional(found)
    again = network.load(tmp_path, TASK)  # by its own arguments: nobody offers any
    assert same(again, net)


def same(first: Any, second: Any) -> bool:
    import torch

    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_come_along_and_only_the_last_layer_may_be_new(code: Path, tmp_path: Path, suffix: str) -> None:
    import torch
    from safetensors.torch import save_file

    made = modules.build(imported(code, tmp_path / "cache"), {"classes": 3, "channels": 1})[0]
    weights = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(made.state_dict(), weights)
        with pytest.raises(InputError, match="--allow-pickle reads it once with weights_only=True"):
            imported(code, tmp_path / "cache", weights=weights)
    else:
        save_file(made.state_dict(), str(weights))
    folder = imported(code, tmp_path / "cache", weights=weights, pickle=True)
    three = network.load(folder, TASK, LABELS[:3], ENCODING)
    assert torch.equal(three.net.head.weight, made.head.weight)
    four = network.load(folder, TASK, LABELS, ENCODING)
    assert four.net.head.weight.shape[0] == 4
    assert torch.equal(four.net.stem[0].weight, made.stem[0].weight)


def test_weights_that_do_not_belong_are_refused(code: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    made = modules.build(imported(code, tmp_path / "cache"), {"classes": 3, "channels": 1})[0]
    state = {name: value.clone() for name, value in made.state_dict().items()}
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "less": (
            {name: value for name, value in state.items() if name != "stem.0.bias"},
            r"lack 1 tensors.*stem\.0\.bias",
        ),
        "more": ({**state, "other.weight": torch.zeros(3)}, r"the network has not, 1 tensors.*other\.weight"),
    }
    for name, (tensors, message) in cases.items():
        save_file(tensors, str(tmp_path / f"{name}.safetensors"))
        folder = imported(code, tmp_path / "cache", weights=tmp_path / f"{name}.safetensors")
        with pytest.raises(InputError, match=message):
            network.load(folder, TASK, LABELS, ENCODING)


def test_layers_take_the_width_of_their_weights(code: Path, tmp_path: Path) -> None:
    """As pruning leaves them: depthwise convolutions, norms and the last layer among them."""
    import torch

    folder = imported(code, tmp_path / "cache")
    narrow = modules.build(folder, {"classes": 3, "channels": 3})[0]
    config = json.loads((folder / "config.json").read_text())
    wide, _ = modules.build(folder, {"classes": 3, "channels": 3})
    slim = type(wide)(3, 3, 10)
    modules.fit(narrow, slim.state_dict())
    narrow.load_state_dict(slim.state_dict())
    images = torch.randn(2, 3, 24, 24)
    assert torch.equal(narrow.eval()(images), slim.eval()(images))
    assert narrow.blocks[0].depthwise.groups == 10
    assert config["arguments"] == {}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", "broken.* failed: RuntimeError: no network today"),
        ("not_a_network", "returned a int, not a torch.nn.Module"),
        ("missing", "has no function 'missing'"),
    ],
)
def test_functions_that_build_nothing_are_refused(code: Path, tmp_path: Path, function: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        modules.build(imported(code, tmp_path / "cache", function), {"classes": 3})


def test_code_that_cannot_be_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("import no_such_package\n")
    with pytest.raises(InputError, match="cannot be run: ModuleNotFoundError"):
        modules.build(imported(path, tmp_path / "cache"), {})
    with pytest.raises(InputError, match="does not exist; a network is given as"):
        imported(tmp_path / "away.py", tmp_path / "cache")
    with pytest.raises(InputError, match="'a b' is no name of a function"):
        imported(path, tmp_path / "cache", "a b")


def test_a_folder_with_code_runs_it_only_if_allowed(code: Path, tmp_path: Path) -> None:
    """By the verbs: the code would write a file."""
    ran = tmp_path / "ran"
    code.write_text(f"open({str(ran)!r}, 'w').close()\n" + code.read_text())
    folder = tmp_path / "cache-free"
    network.load(imported(code, tmp_path / "cache"), TASK, LABELS, ENCODING).save_pretrained(_made(folder))
    (folder / "preprocessor.json").write_text(json.dumps(ENCODING))
    ran.unlink()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").mkdir()
    for arguments in (
        ("convert", folder, "--data", tmp_path / "data"),
        ("distill", folder, "--data", tmp_path / "data", "--layers", "1", "-o", tmp_path / "out"),
        ("prune", folder, "--data", tmp_path / "data", "--ffn", "0.5", "-o", tmp_path / "out"),
        ("export", folder, "--engine", "litert", "--task", "image-classification", "-o", tmp_path / "out"),
        ("quantize", folder, "--engine", "litert", "--task", "image-classification", "-o", tmp_path / "out"),
        ("finetune", folder, "--data", tmp_path / "data", "-o", tmp_path / "out"),
    ):
        done = run_toolkit(*arguments)
        assert done.returncode == 2, (arguments[0], done.stderr)
        assert "holds Python code (module.py)" in done.stderr and "--allow-code" in done.stderr, done.stderr
        assert not ran.exists(), arguments[0]
    shown = run_toolkit("inspect", folder)
    assert shown.returncode == 0, shown.stderr
    assert not ran.exists()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder

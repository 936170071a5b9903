"""`toolkit targets`: the list, what differs, a profile to start from, the rules; and targets in a conversion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import profiles
from tests.conftest import run_toolkit
from toolkit import planning, recipe, target
from toolkit.devices import local
from toolkit.errors import InputError
from toolkit.gates import memory, size, speed
from toolkit.target import compare, draft


def test_list_by_kind() -> None:
    some = json.loads(run_toolkit("targets", "list", "--kind", "npu", "--json").stdout)
    assert [each["name"] for each in some] == ["coral-edgetpu", "hailo-8", "hailo-8l"]
    people = run_toolkit("targets", "--kind", "npu").stdout
    assert "Accelerator modules" in people
    assert "[hailort]" in people
    assert "raspberry-pi-5" not in people
    assert run_toolkit("targets", "--kind", "toaster").returncode == 2


def test_show_of_an_image(tmp_path: Path) -> None:
    shown = run_toolkit("targets", "show", "jetson@jetpack-6.0")
    assert "versions: ==8.6.*" in shown.stdout
    mine = tmp_path / "jetson-orin-nano-8gb.yaml"
    mine.write_text(shown.stdout, encoding="utf-8")
    assert target.load_file(mine) == target.resolve("jetson@jetpack-6.0")


@pytest.mark.parametrize("name", sorted(target.available()))
def test_a_profile_that_is_shown_is_that_profile(name: str, tmp_path: Path) -> None:
    from toolkit import strict_yaml

    profile = target.resolve(name)
    path = tmp_path / f"{name}.yaml"
    path.write_text(strict_yaml.dump(profile.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    assert target.load_file(path) == profile
    assert target.lint(path) == []


# What differs


def test_differences_key_by_key() -> None:
    found = compare.differences(target.resolve("jetson"), target.resolve("jetson-orin-nano-8gb-super"))
    by_key = {key: (a, b) for key, a, b in found if key != "known_traps"}
    assert by_key["memory.bandwidth_gb_per_s"] == ("68", "102")
    assert by_key["gpu.clock_mhz"] == ("625", "1020")
    assert by_key["power_modes.MAXN_SUPER"] == ("-", "there")
    assert by_key["images"][1] == "jetpack-6.2, jetpack-7.2"
    assert "memory.ram_gb" not in by_key
    assert "name" not in by_key
    traps = [(a, b) for key, a, b in found if key == "known_traps"]
    assert ("-", "Super modes need JetPack 6.2 or later.") in traps
    assert all(a == "-" or b == "-" for a, b in traps)


def test_engines_and_versions_differ_by_name() -> None:
    found = {key: (a, b) for key, a, b in compare.differences(target.resolve("jetson"), target.resolve("pi5"))}
    assert found["engines.tensorrt.versions"] == (">=10.3,<11", "-")
    assert found["engines.litert.versions"] == ("-", ">=1.0")


def test_diff_on_the_command_line() -> None:
    done = run_toolkit("targets", "diff", "hailo-8", "hailo-8l", "--json")
    assert {"key": "peaks.npu.int8_gops_per_s", "a": "26000", "b": "13000"} in json.loads(done.stdout)
    assert "are the same hardware" in run_toolkit("targets", "diff", "pi5", "rpi5").stdout
    assert run_toolkit("targets", "diff", "pi5", "pi55").returncode == 2


# A profile to start from


@pytest.mark.parametrize("like", ["raspberry-pi-5", "jetson@jetpack-6.0", "hailo-8l", "stm32h743", "x86-avx2"])
def test_a_draft_is_a_clean_profile(like: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(draft.draft("mine", like), encoding="utf-8")
    assert target.lint(path) == []
    made, base = target.load_file(path), target.resolve(like)
    assert made.name == "mine"
    assert made.aliases == []
    assert all(source.source.endswith(f"(of {base.name})") for source in made.sources)
    changed = {"name": base.name, "title": base.title, "aliases": base.aliases, "sources": base.sources}
    assert made.model_copy(update=changed) == base


def test_a_long_value_is_not_cut_by_its_comment(tmp_path: Path) -> None:
    base = tmp_path / "long.yaml"
    model = "a name of many words " * 10 + "end"
    text = draft.draft("long", "raspberry-pi-5").replace("4x Cortex-A76", model)
    base.write_text(text, encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(draft.draft("mine", str(base)), encoding="utf-8")
    made = target.load_file(path)
    assert made.cpu is not None
    assert made.cpu.model == model


def test_a_draft_has_a_comment_beside_its_keys() -> None:
    text = draft.draft("mine", "raspberry-pi-5")
    assert text.startswith("# A hardware profile to fill in")
    assert "  clock_mhz: 2400  # Sustained clock of the fastest cores\n" in text
    assert "  bandwidth_gb_per_s: 17  # Peak memory bandwidth\n" in text
    assert "images: [raspberry-pi-os, tflite-runtime-2.14]\n" in text


@pytest.mark.parametrize("name", ["raspberry-pi-5", "pi5", "host"])
def test_a_draft_takes_no_name_that_is_taken(name: str) -> None:
    with pytest.raises(InputError, match=f"There is a target '{name}' already"):
        draft.draft(name, "raspberry-pi-4")


def test_new_writes_a_file_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    done = run_toolkit("targets", "new", "mine", "--like", "pi5", "-o", path)
    assert done.returncode == 0, done.stderr
    path.write_text("mine", encoding="utf-8")
    again = run_toolkit("targets", "new", "mine", "--like", "pi5", "-o", path)
    assert again.returncode == 2
    assert f"{path} exists; --overwrite replaces it." in again.stderr
    assert path.read_text(encoding="utf-8") == "mine"
    assert run_toolkit("targets", "new", "mine", "--like", "pi5", "-o", path, "--overwrite").returncode == 0
    assert "name: mine" in path.read_text(encoding="utf-8")


def test_new_from_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "here.yaml"
    assert run_toolkit("targets", "new", "here", "--from-host", "-o", path).returncode == 0
    assert target.lint(path) == []
    made = target.load_file(path)
    assert made.cpu is not None
    assert made.cpu.isa == local.isa()
    assert local.stands_for(made)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mine"], "--like TARGET"),
        (["mine", "--like", "pi5", "--from-host"], "--like TARGET"),
        (["My Board", "--like", "pi5"], "'My Board' is no name for a target"),
        (["mine", "--like", "pi55"], "Did you mean 'pi5'"),
        (["mine", "--like", "pi5", "-o", "/no/folder/mine.yaml"], "Cannot write /no/folder/mine.yaml"),
    ],
)
def test_new_refuses(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = run_toolkit("targets", "new", *arguments)
    assert done.returncode == 2
    assert said in done.stderr


# Rules


def test_rules_on_the_command_line() -> None:
    assert "tensorrt-10.3" in run_toolkit("targets", "rules").stdout
    assert "statements:" in run_toolkit("targets", "rules", "tensorrt-10.3").stdout
    one = json.loads(run_toolkit("targets", "rules", "tensorrt-8.5", "LayerNormalization", "--json").stdout)
    assert one["status"] == "unsupported"
    assert run_toolkit("targets", "rules", "tensorrt-10.4").returncode == 2


# In a conversion


@pytest.fixture
def board(tmp_path: Path) -> Path:
    path = tmp_path / "my-board.yaml"
    text = draft.draft("my-board", "raspberry-pi-5")
    path.write_text(text + "budgets: {max_size_mb: 7, max_memory_mb: 300}\n", encoding="utf-8")
    return path


def plan(model: Path, data: Path, **options: object) -> planning.Plan:
    given = {"output": str(model.parent / "out"), "cache_dir": str(model.parent / "cache")}
    return planning.plan(planning.Options(model=str(model), data=str(data), **{**given, **options}))  # type: ignore[arg-type]


def test_budgets_of_the_profile_hold_where_the_user_gives_none(trained: Path, data: Path, board: Path) -> None:
    budgets = plan(trained, data, target=str(board), max_size_mb=5.0).recipe.budgets
    assert budgets.of("max_size_mb") == (5.0, "--max-size")
    assert budgets.of("max_memory_mb") == (300.0, "max_memory_mb of my-board")
    assert budgets.of("max_latency_ms") == (None, "--max-latency")
    assert plan(trained, data, target="pi5").recipe.budgets == recipe.Budgets()


def test_gates_say_whose_budget_it_is() -> None:
    budgets = recipe.Budgets(
        max_size_mb=1, max_memory_mb=2, max_latency_ms=3,
        given_by={"max_size_mb": "max_size_mb of b", "max_memory_mb": "max_memory_mb of b"},
    )  # fmt: skip
    assert size.check(2_000_000, *budgets.of("max_size_mb")).reason == "2.0 MB (max_size_mb of b 1 MB)"
    assert "(max_memory_mb of b 2 MB)" in memory.check(3_000_000, *budgets.of("max_memory_mb")).reason
    assert "(max_memory_mb of b 2 MB)" in memory.check(None, *budgets.of("max_memory_mb")).reason
    latency = speed.Latency(4, "measured")
    assert speed.check_budget(latency, *budgets.of("max_latency_ms")).reason == "4.00 ms (--max-latency 3 ms)"


def test_a_latency_budget_where_no_latency_can_be_told(trained: Path, data: Path) -> None:
    with pytest.raises(InputError, match="--max-latency 5 ms: no latency on 'apple-m1' can be told"):
        plan(trained, data, target="apple-m1", max_latency_ms=5.0)
    assert plan(trained, data, target="apple-m1").recipe.candidates
    assert plan(trained, data, target="pi5", max_latency_ms=5.0).recipe.candidates
    assert plan(trained, data, target="host", max_latency_ms=5.0).recipe.candidates


def test_a_latency_that_is_not_known_keeps_to_no_budget() -> None:
    assert speed.check_budget(None, None).passed
    refused = speed.check_budget(None, 5)
    assert not refused.passed
    assert refused.reason == "not known (--max-latency 5 ms)"


def test_dry_run_says_where_a_budget_comes_from(trained: Path, data: Path, board: Path, tmp_path: Path) -> None:
    arguments = ["convert", trained, "--data", data, "--cache-dir", tmp_path / "cache", "-o", tmp_path / "out"]
    done = run_toolkit(*arguments, "--target", board, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "max_size_mb: 7.0" in done.stdout
    assert "max_size_mb: max_size_mb of my-board" in done.stdout


def test_the_recipe_names_the_image(trained: Path, data: Path, tmp_path: Path) -> None:
    made = plan(trained, data, target="jetson@jetpack-7.2")
    assert made.recipe.target == "jetson-orin-nano-8gb@jetpack-7.2"
    assert {c.engine for c in made.recipe.candidates} == {"tensorrt", "litert", "onnxruntime"}
    assert made.target.engine("tensorrt").rules == "tensorrt-10.16"
    (tmp_path / "recipe.yaml").write_text(made.recipe.to_yaml(), encoding="utf-8")
    again = planning.plan(
        planning.Options(
            recipe=str(tmp_path / "recipe.yaml"), output=str(tmp_path / "o"), cache_dir=str(tmp_path / "c")
        )
    )
    assert again.target == made.target
    other = plan(trained, data, target="jetson@jetpack-7.2", output=None)
    assert other.output.name == f"{trained.name}-jetson-orin-nano-8gb-jetpack-7.2"


def test_an_old_tensorrt_gets_graphs_that_it_reads(trained: Path, data: Path) -> None:
    made = plan(trained, data, target="jetson@jetpack-5.1").recipe
    assert [c.precision for c in made.candidates if c.engine == "tensorrt"] == ["fp32", "fp16", "int8"]


def test_what_a_runtime_cannot_read_is_not_tried(tmp_path: Path, trained: Path, data: Path) -> None:
    path = tmp_path / "my-board.yaml"
    path.write_text(profiles.BOARD, encoding="utf-8")
    profiles.change(path, "  - name: litert\n", "  - name: onnxruntime\n    onnx_opset_max: 11\n")
    with pytest.raises(InputError, match="reads ONNX up to opset 11; this version writes 13 and later"):
        plan(trained, data, target=str(path))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hailo-8", "this version builds for no runtime of it. hailort: Takes an HEF file"),
        ("cortex-m4", "it takes files of integers alone, inputs and outputs too, and a text encoder masks padding"),
    ],
)
def test_a_target_that_nothing_is_built_for_is_refused_before_anything_else(name: str, said: str, data: Path) -> None:
    """The model is not even looked at."""
    done = run_toolkit("convert", "/no/model", "--data", data, "--target", name)
    assert done.returncode == 2
    assert f"Nothing can be made for target '{name}'" in done.stderr
    assert said in done.stderr

"""Families, images and traps that profiles share, narrowing to an image, and what `lint` finds beyond the schema."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.profiles import change, refusal
from toolkit import rules, shipped, target
from toolkit.errors import InputError

# One id for each machine that a profile was asked for.
MACHINES = [
    "jetson-orin-nano-4gb", "jetson-orin-nano-4gb-super", "jetson-orin-nano-8gb", "jetson-orin-nano-8gb-super",
    "jetson-orin-nx-8gb", "jetson-orin-nx-8gb-super", "jetson-orin-nx-16gb", "jetson-orin-nx-16gb-super",
    "jetson-agx-orin-32gb", "jetson-agx-orin-64gb", "jetson-thor-t5000", "jetson-thor-t4000", "jetson-agx-xavier",
    "jetson-xavier-nx", "jetson-nano", "h100-sxm", "h200", "l4", "t4", "a10", "rtx-4090", "rtx-5090",
    "dgx-spark-gb10", "rpi4", "rpi5", "snapdragon-8gen2", "snapdragon-8gen3", "snapdragon-8-elite",
    "snapdragon-7s-gen4", "snapdragon-7-2020", "pixel-8", "pixel-9", "apple-a16", "apple-a17pro", "apple-a18",
    "apple-m1", "apple-m2", "apple-m4", "intel-n100", "x86-avx512-vnni-core", "x86-amx-core", "amd-epyc-zen5-2c",
    "rk3588", "imx8mp", "coral-edgetpu", "hailo-8", "hailo-8l", "stm32n6", "stm32h743", "cortex-m4",
]  # fmt: skip


@pytest.mark.parametrize("name", MACHINES)
def test_every_machine_has_a_profile(name: str) -> None:
    found = target.resolve(name)
    assert name in (found.name, *found.aliases)


# Images


def test_an_image_narrows_versions_opset_and_rules() -> None:
    wide, narrow = target.resolve("jetson-orin-nano-8gb"), target.resolve("jetson@jetpack-5.1")
    assert wide.image == "jetpack-6.2"
    assert wide.engine("tensorrt").versions == ">=10.3,<11"
    engine = narrow.engine("tensorrt")
    assert (engine.versions, engine.onnx_opset_max, engine.rules) == ("==8.5.*", 17, "tensorrt-8.5")
    assert narrow.image == "jetpack-5.1"
    assert [image.id for image in narrow.images] == ["jetpack-5.1"]
    assert narrow.engine("litert") == wide.engine("litert")  # the image says nothing of it
    assert narrow.title == "Jetson Orin Nano 8GB with JetPack 5.1.x (L4T 35.2 to 35.6)"
    assert narrow.name == "jetson-orin-nano-8gb"


@pytest.mark.parametrize("name", sorted(target.available()))
def test_every_image_of_a_profile_has_rules_for_its_tensorrt(name: str) -> None:
    profile = target.resolve(name)
    for image in profile.images:
        narrowed = target.resolve(f"{name}@{image.id}")
        if "tensorrt" in image.versions:
            table = rules.load(narrowed.engine("tensorrt").rules or "")
            assert narrowed.engine("tensorrt").onnx_opset_max == table.opset_max


def test_an_image_that_a_target_does_not_have() -> None:
    with pytest.raises(InputError, match=r"'jetson-nano' has no image 'jetpack-6.2'; it has: jetpack-4.6."):
        target.resolve("jetson-nano@jetpack-6.2")
    with pytest.raises(InputError, match="'host' has no image 'x'; it has: none"):
        target.resolve("host@x")


def test_a_path_may_have_an_at_sign(board: Path) -> None:
    folder = board.parent / "a@b"
    folder.mkdir()
    inside = Path(shutil.copy(board, folder / board.name))
    assert target.resolve(str(inside)).name == "my-board"
    change(inside, "engines:", "images: [jetpack-6.2, jetpack-7.2]\nengines:")
    assert target.resolve(f"{inside}@jetpack-7.2").image == "jetpack-7.2"


def test_an_image_may_be_written_out(board: Path) -> None:
    own = "images:\n  - {id: mine, title: Mine, versions: {litert: '2.3.0'}, source: me, confidence: read}\nengines:"
    change(board, "engines:", own)
    engine = target.resolve(f"{board}@mine").engine("litert")
    assert (engine.versions, engine.rules, engine.onnx_opset_max) == ("==2.3.*", "litert-2.3", None)


def test_unknown_image_and_trap_are_refused(board: Path) -> None:
    change(board, "engines:", "images: [jetpack-66]\nknown_traps: [phone-heat, phone-cold, a text is a text]\nengines:")
    lines = refusal(board).splitlines()
    assert lines[0].startswith(f"{board}:12: images.0: there is no image 'jetpack-66'; known: jetpack-4.6, ")
    assert lines[1].startswith(f"{board}:13: known_traps.1: there is no trap 'phone-cold'; known: ")
    assert len(lines) == 2


def test_a_trap_is_the_text_that_its_id_stands_for(board: Path) -> None:
    change(board, "engines:", "known_traps: [phone-heat, a text is a text]\nengines:")
    assert target.load_file(board).known_traps == [
        "Under sustained load a phone gets hot and slows down; the clocks here are upper limits.", "a text is a text",
    ]  # fmt: skip


def test_the_default_image_is_one_of_the_images(board: Path) -> None:
    change(board, "engines:", "images: [jetpack-6.2]\nimage: jetpack-7.2\nengines:")
    assert "image 'jetpack-7.2' is not among the images" in refusal(board)


# Families


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped data that is used instead of it."""
    copy = tmp_path / "targets"
    shutil.copytree(shipped.targets_folder(), copy)
    monkeypatch.setattr(shipped, "targets_folder", lambda: copy)
    return copy


def test_a_profile_adds_to_its_family(folder: Path, board: Path) -> None:
    (folder / "families" / "mine.yaml").write_text(
        "kind: phone\ncpu: {architecture: aarch64, isa: [asimd], cores: 2, threads: 2}\nknown_traps: [of the family]\n"
        "engines: [{name: onnxruntime, precisions: [fp32]}]\n"
        "sources: [{covers: [engines], source: the family, confidence: recalled}]\n"
    )
    change(board, "kind: board\n", "family: mine\nknown_traps: [its own]\n")
    change(board, "  architecture: aarch64\n  isa: [asimd]\n", "")
    found = target.load_file(board)
    assert found.kind == "phone"
    assert found.cpu is not None
    assert (found.cpu.architecture, found.cpu.cores, found.cpu.threads) == ("aarch64", 4, 2)
    assert found.known_traps == ["its own", "of the family"]
    assert [source.source for source in found.sources] == ["data sheet", "the family"]
    assert [engine.name for engine in found.engines] == ["litert"]  # replaced, not added


def test_unknown_family(board: Path) -> None:
    change(board, "kind: board", "family: jetson-apple")
    assert refusal(board).startswith(f"{board}:4: family: there is no 'jetson-apple'; known: android-phone, ")


# What a target must and must not have


def test_a_target_without_engines_says_what_runs_there(board: Path) -> None:
    change(board, "  - name: litert\n    precisions: [fp32, int8]\n", "  []\n")
    assert "neither engines nor other_runtimes" in refusal(board)
    change(board, "  []\n", "  []\nother_runtimes: [{name: theirs, note: wants a file of its own}]\n")
    assert target.load_file(board).engines == []


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        ("{ram_gb_range: [8, 4]}", "ram_gb_range is the least and the most"),
        ("{ram_gb: 4, ram_gb_range: [4, 8]}", "either ram_gb or ram_gb_range"),
        ("{flash_mb_range: [2]}", "flash_mb_range"),
    ],
)
def test_faulty_memory(board: Path, memory: str, said: str) -> None:
    change(board, "engines:", f"memory: {memory}\nengines:")
    assert said in refusal(board)


def test_peaks_of_a_processor_that_is_not_there(board: Path) -> None:
    change(board, "peaks:", "peaks:\n  npu: {int8_gops_per_s: 4000}")
    assert "peaks of the npu, but the profile has no npu" in refusal(board)


def test_version_range_that_is_none(board: Path) -> None:
    change(board, "precisions: [fp32, int8]", "precisions: [fp32, int8]\n    versions: 2 or later")
    assert f"{board}:15: engines.0.versions: '2 or later' is not a version range" in refusal(board)


# Lint


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("covers: [cpu, peaks]", "covers: [cpu.cores, peaks.cpu.fp32_gops_per_s]", None),
        ("covers: [cpu, peaks]", "covers: [peaks]", "no source covers the number 'cpu.cores'"),
        ("engines:", "memory: {ram_gb: 4}\nengines:", "no source covers the number 'memory.ram_gb'"),
        ("engines:", "power_w: [2, 3]\nengines:", "no source covers the number 'power_w'"),
        ("engines:", "budgets: {max_size_mb: 2}\nengines:", "no source covers the number 'budgets.max_size_mb'"),
        ("cpu, peaks]", "cpu, peaks, gpu]", "a source covers 'gpu', which the profile does not have"),
        (
            "precisions: [fp32, int8]", "precisions: [fp32, int8]\n    rules: litert-9",
            "engines.litert: there is no rule table 'litert-9'",
        ),
        (
            "precisions: [fp32, int8]", "precisions: [fp32, int8]\n    rules: tensorrt-10.3",
            "engines.litert: the rule table 'tensorrt-10.3' is one of tensorrt",
        ),
        (
            "precisions: [fp32, int8]", 'precisions: [fp32, int8]\n    rules: litert-2.3\n    versions: "<2"',
            "engines.litert: the rule table 'litert-2.3' is of 2.3.0, not in <2",
        ),
    ],
)  # fmt: skip
def test_lint(board: Path, old: str, new: str, said: str | None) -> None:
    change(board, old, new)
    assert target.lint(board) == ([f"{board}:1: {said}"] if said else [])


def test_lint_compares_with_the_table_and_the_image(folder: Path) -> None:
    path = folder / "families" / "jetson-orin.yaml"
    change(path, "onnx_opset_max: 20", "onnx_opset_max: 21")
    change(path, "image: jetpack-6.2", "image: jetpack-6.0")
    assert target.lint(folder / "jetson-orin-nano-8gb.yaml") == [
        f"{folder}/jetson-orin-nano-8gb.yaml:1: {problem}"
        for problem in (
            "engines.tensorrt: onnx_opset_max is 21, and tensorrt-10.3 takes opsets 9 to 20",
            "engines.tensorrt: image 'jetpack-6.0' has 8.6.2, which is not in >=10.3,<11",
        )
    ]


@pytest.mark.parametrize("name", sorted(target.available()))
def test_lint_misses_the_sources_of_a_shipped_profile(name: str, folder: Path) -> None:
    """Every profile has a number that only its own or its family's sources stand for."""
    path = folder / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    head = text.partition("sources:\n")[0]
    path.write_text(head + "sources:\n  - {covers: [title], source: none, confidence: recalled}\n", encoding="utf-8")
    assert any("no source covers the number" in problem for problem in target.lint(path))


def test_what_profiles_share_is_used_and_sound() -> None:
    assert target.lint_shared() == []


def test_lint_finds_what_nothing_uses_and_a_faulty_table(folder: Path) -> None:
    (folder / "families" / "lonely.yaml").write_text("kind: board\n", encoding="utf-8")
    change(folder / "shared" / "traps.yaml", "traps:\n", "traps:\n  not-used: {text: x, source: y, confidence: read}\n")
    idle = "limits:\n  idle: {statement: a, instead: b, source: c, confidence: read}\n"
    change(folder / "shared" / "limits.yaml", "limits:\n", idle)
    change(folder / "rules" / "dla.yaml", "name: dla", "name: other")
    assert [problem.partition(":1: ")[2] for problem in target.lint_shared()] == [
        "name 'other' differs from the file name",
        *(f"no rule table names '{name}'" for name in ("idle", "dla-fp16-int8", "dla-releases", "dla-loadables")),
        "no profile names 'not-used'",
        "no profile names 'lonely'",
    ]


# What may fall back


def test_the_share_that_may_fall_back_depends_on_what_runs_it(board: Path) -> None:
    jetson = target.resolve("jetson")
    assert jetson.engine("tensorrt").fallback_limit == 0
    assert jetson.engine("litert").fallback_limit == target.schema.DEFAULT_FALLBACK
    assert jetson.engine("onnxruntime").fallback_limit is None
    assert jetson.engine("litert").coverage_rules == "xnnpack-2.3"
    assert jetson.engine("onnxruntime").coverage_rules == "onnxruntime-1.31"
    assert target.load_file(board).engine("litert").coverage_rules is None
    change(board, "precisions: [fp32, int8]", "precisions: [fp32, int8]\n    max_fallback: 0.25")
    assert target.load_file(board).engine("litert").fallback_limit == 0.25
    assert target.lint(board) == []  # a setting, which needs no source


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("delegate: xnnpack-9", "there is no rule table 'xnnpack-9'"),
        ("delegate: tensorrt-10.3", "the rule table 'tensorrt-10.3' is of no delegate of litert"),
    ],
)
def test_a_delegate_that_is_none_is_found(line: str, said: str, board: Path) -> None:
    change(board, "precisions: [fp32, int8]", f"precisions: [fp32, int8]\n    {line}")
    assert [said in problem for problem in target.lint(board)] == [True]


def test_a_share_above_one_is_refused(board: Path) -> None:
    change(board, "precisions: [fp32, int8]", "precisions: [fp32, int8]\n    max_fallback: 10")
    assert "max_fallback" in refusal(board)


def test_an_image_with_another_litert_has_no_table_of_its_delegate(board: Path) -> None:
    change(board, "precisions: [fp32, int8]", "precisions: [fp32, int8]\n    delegate: xnnpack-2.3")
    image = "images:\n  - {id: own, title: Own, versions: {litert: VERSION}, source: data sheet, confidence: read}\n"
    text = board.read_text(encoding="utf-8")
    for version, delegate in (("2.3.1", "xnnpack-2.3"), ("2.5.0", None)):
        board.write_text(text + image.replace("VERSION", f'"{version}"'), encoding="utf-8")
        assert target.resolve(f"{board}@own").engine("litert").delegate == delegate

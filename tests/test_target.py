"""Target profiles: the shipped ones, what is refused and how, and when this machine stands for one."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.profiles import change, refusal
from toolkit import rules, shipped, target
from toolkit.devices import local
from toolkit.errors import InputError

SHIPPED = {
    "android-flagship",
    "android-midrange",
    "jetson-orin-nano-8gb",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "rtx-4090",
    "x86-avx2",
    "x86-avx512",
}
# Of these no peak rate of what runs the model is known.
WITHOUT_ESTIMATE = {
    *("apple-a16", "apple-a17pro", "apple-a18", "apple-m1", "apple-m2", "apple-m4"),
    *("dgx-spark-gb10", "jetson-thor-t4000"),
}
ALIASES = {
    "android": "android-flagship",
    "jetson": "jetson-orin-nano-8gb",
    "orin-nano": "jetson-orin-nano-8gb",
    "rpi4": "raspberry-pi-4",
    "pi4": "raspberry-pi-4",
    "rpi5": "raspberry-pi-5",
    "pi5": "raspberry-pi-5",
}


def a_target(isa: list[str], architecture: str) -> target.Target:
    cpu = target.Cpu.model_validate({"model": "any", "architecture": architecture, "isa": isa, "cores": 1})
    return target.Target(
        name="any",
        title="any",
        kind="board",
        cpu=cpu,
        engines=[target.EngineSupport(name="litert", precisions=["fp32"])],
        sources=[target.Source(covers=["cpu"], source="a test", confidence="read")],
    )


# The shipped profiles


def test_the_expected_profiles_are_shipped() -> None:
    assert set(target.available()) >= SHIPPED


@pytest.mark.parametrize("name", sorted(target.available()))
def test_shipped_profile_loads_and_lints_clean(name: str) -> None:
    path = target.available()[name]
    assert target.lint(path) == []
    assert target.resolve(name).name == name


@pytest.mark.parametrize("name", sorted(target.available()))
def test_shipped_profile_is_usable(name: str) -> None:
    """What the schema cannot see: spelling of the ISA, version ranges, peaks in a credible order."""
    profile = target.resolve(name)
    if profile.cpu:
        known = {"dsp", "mve"} if profile.kind == "mcu" else set(local._KNOWN_ISA)
        assert set(profile.cpu.isa) <= known
    for engine in profile.engines:
        assert engine.precisions[0] == ("int8" if engine.io == "integer" else "fp32")
        # tflite-micro itself is asked; of the other two there is no table.
        assert engine.rules is not None or profile.kind == "mcu" or engine.name in ("openvino", "executorch")
        if name not in WITHOUT_ESTIMATE:
            assert engine.processor in profile.peaks
    for peaks in profile.peaks.values():
        rates = [peaks.fp32_gops_per_s, peaks.fp16_gops_per_s, peaks.int8_gops_per_s]
        known = [rate for rate in rates if rate is not None]
        assert known == sorted(known)


def test_profiles_without_a_cpu_engine_have_one_thread() -> None:
    profile = target.resolve("rtx-4090")
    assert profile.cpu is None
    assert profile.threads == 1
    assert profile.engine("tensorrt").processor == "gpu"
    with pytest.raises(KeyError):
        profile.engine("litert")


def test_peaks_are_looked_up_by_precision() -> None:
    peaks = target.resolve("raspberry-pi-5").peaks["cpu"]
    assert peaks.rate("int8") == 614
    assert peaks.rate("fp32") == 154
    assert peaks.rate("bf16") is None


# Names


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_alias_resolves(alias: str, name: str) -> None:
    assert target.aliases()[alias] == name
    assert target.resolve(alias).name == name


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("raspbery-pi-5", "raspberry-pi-5"),
        ("Jetson", "jetson"),
        ("x86-avx-512", "x86-avx512"),
        ("hots", "host"),
    ],
)
def test_unknown_name_suggests_the_nearest(typo: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"Unknown target '{typo}'. Did you mean '{meant}'"):
        target.resolve(typo)


def test_unknown_name_without_a_near_one_suggests_nothing() -> None:
    with pytest.raises(InputError) as caught:
        target.resolve("qqqq")
    assert "Did you mean" not in str(caught.value)
    assert "`toolkit targets`" in str(caught.value)


def test_path_of_a_file_is_a_target(board: Path) -> None:
    assert target.resolve(str(board)).name == "my-board"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped profiles that is used instead of them."""
    copy = tmp_path / "targets"
    shutil.copytree(target.targets_folder(), copy)
    monkeypatch.setattr(shipped, "targets_folder", lambda: copy)
    return copy


@pytest.mark.parametrize("taken", ["jetson", "rtx-4090", "host"])
def test_alias_that_is_taken_is_refused(folder: Path, board: Path, taken: str) -> None:
    change(board, "title: My board", f"title: My board\naliases: [{taken}]")
    shutil.copy(board, folder / "my-board.yaml")
    with pytest.raises(InputError, match=f"alias '{taken}' is already taken"):
        target.aliases()


def test_profile_put_into_the_folder_is_found_by_name_and_alias(folder: Path, board: Path) -> None:
    change(board, "title: My board", "title: My board\naliases: [mine]")
    shutil.copy(board, folder / "my-board.yaml")
    assert target.resolve("my-board").name == "my-board"
    assert target.resolve("mine").name == "my-board"


# Refusals: file, line, key


def test_the_unbroken_profile_is_accepted(board: Path) -> None:
    assert target.lint(board) == []
    assert target.load_file(board).threads == 1


def test_unknown_key_is_refused_with_its_line(board: Path) -> None:
    change(board, "title: My board", "title: My board\ncolour: green")
    assert refusal(board) == f"{board}:4: colour: unknown key"


def test_unknown_nested_key_is_refused_with_its_line(board: Path) -> None:
    change(board, "    precisions: [fp32, int8]", "    precisions: [fp32, int8]\n    precison: fp16")
    assert refusal(board) == f"{board}:15: engines.0.precison: unknown key"


def test_missing_key_is_named(board: Path) -> None:
    change(board, "kind: board\n", "")
    assert refusal(board) == f"{board}:1: kind: required key is missing"


def test_missing_nested_key_is_named_with_the_line_of_its_section(board: Path) -> None:
    change(board, "  cores: 4\n", "")
    assert refusal(board) == f"{board}:5: cpu.cores: required key is missing"


def test_wrong_type_is_named(board: Path) -> None:
    change(board, "cores: 4", "cores: four")
    message = refusal(board)
    assert message.startswith(f"{board}:9: cpu.cores: ")
    assert "valid integer" in message


def test_value_that_is_not_allowed_is_named(board: Path) -> None:
    change(board, "[fp32, int8]", "[fp32, int7]")
    message = refusal(board)
    assert message.startswith(f"{board}:14: engines.0.precisions.1: ")
    assert "'int8'" in message


def test_every_fault_is_told_on_its_own_line(board: Path) -> None:
    change(board, "cores: 4", "cores: 0")
    change(board, "title: My board", "titel: My board")
    found = {line.split(":")[1] for line in refusal(board).splitlines()}
    assert found == {"1", "3", "9"}  # title is missing, titel is unknown, cores is not above 0


def test_engine_on_a_processor_that_the_profile_lacks_is_refused(board: Path) -> None:
    change(board, "  - name: litert", "  - name: litert\n    processor: gpu")
    assert "'litert' runs on the gpu, but the profile has no gpu" in refusal(board)


def test_engine_listed_twice_is_refused(board: Path) -> None:
    change(board, "engines:", "engines:\n  - {name: litert, precisions: [fp32]}")
    assert "listed twice" in refusal(board)


def test_key_that_stands_twice_is_refused(board: Path) -> None:
    change(board, "  cores: 4", "  cores: 4\n  cores: 8")
    assert refusal(board) == f"{board}:10: cores: this key stands here twice"


def test_not_yaml(board: Path) -> None:
    change(board, "isa: [asimd]", "isa: [asimd")
    message = refusal(board)
    assert message.startswith(f"{board}:9: not valid YAML")


def test_impossible_date_is_not_a_traceback(board: Path) -> None:
    change(board, "title: My board", "title: 2026-13-45")
    assert refusal(board).startswith(f"{board}:1: not valid YAML")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "- a list\n", "a sentence\n"])
def test_file_without_a_mapping(board: Path, text: str) -> None:
    board.write_text(text, encoding="utf-8")
    assert refusal(board).startswith(f"{board}:1: a target profile is a YAML mapping")


def test_not_utf8(board: Path) -> None:
    board.write_bytes(b"title: \xff")
    assert refusal(board) == f"{board}: a target profile is UTF-8 text; byte 7 is not."


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "absent.yaml"
    assert refusal(path).startswith(f"Cannot read target profile {path}: ")
    with pytest.raises(InputError, match="Cannot read target profile"):
        target.resolve(str(path))


# Lint: what the schema lets through


def test_lint_tells_what_load_refuses(board: Path) -> None:
    change(board, "title: My board", "title: My board\ncolour: green")
    assert target.lint(board) == [f"{board}:4: colour: unknown key"]


def test_lint_wants_a_source_for_each_number(board: Path) -> None:
    change(board, "covers: [cpu, peaks]", "covers: [cpu]")
    assert target.lint(board) == [f"{board}:1: no source covers the number 'peaks.cpu.fp32_gops_per_s'"]


def test_lint_wants_the_file_named_like_the_profile(board: Path) -> None:
    other = board.rename(board.with_name("other.yaml"))
    assert target.lint(other) == [f"{other}:1: name 'my-board' differs from the file name"]


def test_lint_wants_the_float_peak(board: Path) -> None:
    change(board, "fp32_gops_per_s", "int8_gops_per_s")
    assert target.lint(board) == [f"{board}:1: peaks.cpu has no fp32 rate; no estimate can be made"]


# This machine


def test_host_is_this_machine() -> None:
    host = target.resolve("host")
    assert host.name == "host"
    assert host.cpu is not None
    assert host.cpu.cores == local.cores() > 0
    assert host.cpu.isa == local.isa()
    assert host.cpu.architecture == local.architecture()
    assert host.peaks == {}
    assert host.engine("onnxruntime").rules == getattr(
        rules.fitting("onnxruntime", version("onnxruntime")), "name", None
    )
    assert {engine.processor for engine in host.engines} == {"cpu"}
    assert local.stands_for(host)


def test_machine_stands_for_a_profile_with_its_own_isa() -> None:
    assert local.stands_for(a_target(local.isa(), local.architecture()))


def test_machine_does_not_stand_for_another_architecture() -> None:
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[local.architecture()]
    assert not local.stands_for(a_target(local.isa(), other))
    foreign = {"x86_64": "raspberry-pi-5", "aarch64": "x86-avx2"}[local.architecture()]
    assert not local.stands_for(target.resolve(foreign))


def test_machine_does_not_stand_for_a_profile_without_a_cpu() -> None:
    assert not local.stands_for(target.resolve("rtx-4090"))


@pytest.mark.parametrize(
    ("here", "profile", "stands"),
    [
        (["avx2", "fma", "f16c"], ["avx2", "fma"], True),
        (["avx2"], ["avx2", "fma"], False),  # lacks an extension
        (["avx2", "fma", "avx512f"], ["avx2", "fma"], False),  # faster kernels
        (["avx2", "fma"], ["avx2", "fma", "avx512f"], False),  # slower kernels
    ],
)
def test_same_architecture_stands_only_with_the_same_class_of_kernels(
    monkeypatch: pytest.MonkeyPatch, here: list[str], profile: list[str], stands: bool
) -> None:
    monkeypatch.setattr(local, "architecture", lambda: "x86_64")
    monkeypatch.setattr(local, "isa", lambda: here)
    assert local.stands_for(a_target(profile, "x86_64")) is stands


@pytest.mark.parametrize(
    ("isa", "architecture", "expected"),
    [
        ([], "x86_64", "baseline"),
        (["avx2", "fma"], "x86_64", "avx2"),
        (["avx512f", "avx2"], "x86_64", "avx512f"),  # the order of the list does not matter
        ([], "aarch64", "baseline"),
        (["asimd", "asimdhp"], "aarch64", "asimd"),
        (["asimd", "asimddp"], "aarch64", "asimddp"),
        (["asimd", "asimddp", "i8mm", "bf16"], "aarch64", "i8mm"),
        (["asimd", "asimddp", "i8mm", "sve", "sve2"], "aarch64", "sve2"),
        (["asimd"], "x86_64", "baseline"),  # the ladder of the other architecture
        (["avx2"], "riscv64", "baseline"),
    ],
)
def test_kernel_class_is_the_highest_step(isa: list[str], architecture: str, expected: str) -> None:
    assert local.kernel_class(isa, architecture) == expected

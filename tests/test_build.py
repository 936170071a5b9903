"""Conversions for TensorRT, and `toolkit build` on their bundles: here, and through a real sshd on this machine."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import toolkit
from tests.conftest import run_toolkit
from tests.sshd import Sshd, serving
from tests.test_light_imports import hidden_in_children
from toolkit import inspection
from toolkit.devices import ssh_client
from toolkit.errors import InputError, MissingDependencyError, RefusedError
from toolkit.runtime import manifest as manifests
from toolkit.tensorrt import device, rungs

SCRIPTS = {"build.json", "build_engine.py", "build_engine.sh"}


def profile(folder: Path, *, offline: bool, rules: str = "tensorrt-10.3") -> Path:
    """A GPU for which TensorRT-RTX builds without it, or one for which it does not: fp16 alone, so that it is quick."""
    support = {
        "name": "tensorrt", "processor": "gpu", "precisions": ["fp16"], "versions": ">=10.3,<11",
        "onnx_opset_max": 20, "rules": rules,
    }  # fmt: skip
    other = {"name": "tensorrt-rtx" if offline else "another", "note": "made up"}
    name = "small-rtx" if offline else "small-jetson"
    path = folder / f"{name}.yaml"
    made = {
        "schema_version": 1, "name": name, "title": name, "kind": "gpu",
        "gpu": {"model": "any", "compute_capability": "8.9" if offline else "8.7", "precisions": ["fp16"]},
        "memory": {"ram_gb": 8}, "engines": [support], "other_runtimes": [other],
        "sources": [{"covers": ["gpu"], "source": "made up", "confidence": "recalled"}],
    }  # fmt: skip
    path.write_text(yaml.safe_dump(made))
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensorrt")


@pytest.fixture(scope="module")
def rtx(work: Path, tuned: Path, few: Path) -> Any:
    target = str(profile(work, offline=True))
    return toolkit.convert(tuned, target=target, data=str(few), output=str(work / "rtx"), min_score="90%")


@pytest.fixture(scope="module")
def jetson(work: Path, tuned: Path, few: Path, rtx: Any) -> Any:
    target = str(profile(work, offline=False))
    return toolkit.convert(tuned, target=target, data=str(few), output=str(work / "jetson"), min_score="90%")


def copied(bundle: Any, folder: Path) -> Path:
    return Path(shutil.copytree(bundle.path, folder / "bundle"))


# Conversions


def test_a_conversion_says_how_far_it_was_validated(rtx: Any, jetson: Any) -> None:
    for bundle in (rtx, jetson):
        found = bundle.summary["validation"]
        assert found["rung"] == "L2"
        assert {rung: step["passed"] for rung, step in found["steps"].items()} == {"L0": True, "L1": True, "L2": True}
        assert "TensorRT 10.3 takes all" in found["steps"]["L0"]["detail"]
        assert "accepted by the parser of TensorRT-RTX" in found["steps"]["L1"]["detail"]
        gates = {verdict["gate"] for verdict in bundle.summary["candidates"][0]["verdicts"]}
        assert {"operators", "parser", "score"} <= gates
        page = (bundle.path / "report.html").read_text()
        assert "Validation rung L2 of L4" in page
        assert "nothing ran on the device" in page
        assert "verified" not in page
        facts = dict(inspection.rows(inspection.inspect(bundle.path)))
        assert facts["validation"].startswith("Validation rung L2 of L4")
        assert set(bundle.manifest["files"]) >= SCRIPTS


def test_the_engine_for_an_rtx_gpu_is_in_the_bundle(rtx: Any) -> None:
    made = rtx.summary["engine_build"]
    assert made["built"]
    assert made["detail"].endswith("for compute capability 8.9; it was not run")
    engine = rtx.path / made["path"]
    assert hashlib.sha256(engine.read_bytes()).hexdigest() == made["engine_sha256"]
    assert made["path"] in rtx.manifest["files"]
    manifests.verify_files(manifests.read(rtx.path))
    with pytest.warns(UserWarning, match="not the device's speed"):
        assert set(rtx.load()("a quiet, brilliant film")["scores"]) == set(rtx.manifest["labels"])


def test_the_engine_of_any_other_gpu_is_left_to_the_device(jetson: Any) -> None:
    made = jetson.summary["engine_build"]
    assert not made["built"]
    assert "toolkit build BUNDLE --device ssh://USER@HOST" in made["detail"]
    assert not (jetson.path / "engines").exists()
    recipe = json.loads((jetson.path / "build.json").read_text())
    assert recipe["runtimes"] == ["tensorrt"]
    assert recipe["onnx_sha256"] == jetson.manifest["files"]["model.onnx"]["sha256"]
    longest = rtx_length(jetson)
    assert recipe["shapes"]["input_ids"]["max"] == [1, longest]
    assert 1 < recipe["shapes"]["input_ids"]["opt"][1] <= longest


def rtx_length(bundle: Any) -> int:
    return int(bundle.summary["data"]["encoding"]["max_length"])


@pytest.fixture(scope="module")
def hidden(work: Path) -> dict[str, str]:
    """An environment without the extra `tensorrt`."""
    return hidden_in_children({"tensorrt_rtx"}, work / "hidden")


@pytest.fixture(scope="module")
def bare(rtx: Any, hidden: dict[str, str], work: Path, tuned: Path, few: Path) -> tuple[Path, str]:
    """The conversion of `rtx` without the extra, and what it printed."""
    done = run_toolkit(
        "convert", tuned, "--target", work / "small-rtx.yaml", "--data", few, "-o", work / "bare",
        "--min-score", "90%", environ=hidden,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return work / "bare", done.stdout


def test_a_graph_that_the_table_refuses_is_not_accepted(rtx: Any, tuned: Path, few: Path, tmp_path: Path) -> None:
    target = str(profile(tmp_path, offline=False, rules="tensorrt-8.6"))
    with pytest.raises(RefusedError, match=r"refused by operators: rule opset of tensorrt-8\.6") as caught:
        toolkit.convert(tuned, target=target, data=str(few), output=str(tmp_path / "out"), min_score="90%")
    summary = caught.value.bundle.summary
    assert not summary["accepted"]
    assert summary["validation"]["rung"] is None
    assert summary["validation"]["steps"]["L2"]["passed"]  # which does not count above a refusal
    assert "no rung was reached" in (tmp_path / "out" / "report.html").read_text()


def test_without_the_extra_the_scripts_are_shipped_and_a_line_says_so(
    bare: tuple[Path, str], rtx: Any, hidden: dict[str, str]
) -> None:
    output, printed = bare
    assert "Engine: not built here: " in printed
    assert "pip install 'edge-deployment-toolkit[tensorrt]'" in printed
    assert "Validation rung L2 of L4" in printed
    assert {path.name for path in output.iterdir()} >= SCRIPTS
    assert not (output / "engines").exists()
    # The engine is no content: it is the same bundle.
    assert manifests.read(output).data["content_hash"] == rtx.manifest["content_hash"]
    done = run_toolkit("build", output, environ=hidden)
    assert done.returncode == 3
    assert "edge-deployment-toolkit[tensorrt]" in done.stderr


# Here


def test_an_engine_is_built_here(bare: tuple[Path, str], tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(bare[0], tmp_path / "bundle"))
    for cached in (False, True):
        done = run_toolkit("build", bundle, "--json")
        assert done.returncode == 0, done.stderr
        known = json.loads(done.stdout)
        assert known["cached"] == cached
        assert (bundle / "engines" / known["engine"]).stat().st_size == known["engine_bytes"]
        assert known["validation"]["rung"] == "L2"  # built without the GPU
    assert run_toolkit("verify", bundle).returncode == 0


def test_the_engine_of_the_conversion_is_at_hand(rtx: Any, tmp_path: Path) -> None:
    bundle = copied(rtx, tmp_path)
    assert device.build(bundle)["cached"]
    shutil.rmtree(bundle / "engines")
    with pytest.raises(InputError, match=r"engines/.* is missing"):  # a bundle is checked before anything runs
        device.build(bundle)


def test_what_cannot_be_built_is_refused_before_anything_runs(bundle: Path, jetson: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which builds no engine"):
        device.build(bundle)
    with pytest.raises(InputError, match=r"Unknown image 'jetpack-9'; known: .*jetpack-6\.2"):
        device.build(jetson.path, image="jetpack-9")
    with pytest.raises(MissingDependencyError, match=r"no module 'tensorrt'.*--device ssh"):
        device.build(jetson.path)
    with pytest.raises(InputError, match="is no device: give local, or ssh"):
        device.build(jetson.path, "jetson.local")
    damaged = copied(jetson, tmp_path)
    (damaged / "build_engine.py").write_text("print('hello')")
    with pytest.raises(InputError, match=r"build_engine\.py has \d+ bytes; the manifest says"):
        device.build(damaged)


# Behind ssh


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    """A server with a stand-in for trtexec."""
    trtexec = tmp_path / "trtexec"
    trtexec.write_text(
        "#!/bin/sh\necho '&&&& RUNNING TensorRT.trtexec [TensorRT v100300]'\n"
        'for a; do case "$a" in --saveEngine=*) printf engine > "${a#*=}";; esac; done\n'
    )
    trtexec.chmod(0o755)
    with serving(tmp_path / "ssh", TRTEXEC=str(trtexec)) as server:
        yield server


def test_an_engine_is_built_behind_ssh_and_brought_back(bare: tuple[Path, str], sshd: Sshd, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(bare[0], tmp_path / "bundle"))
    lines: list[str] = []
    known = device.build(bundle, sshd.address, ssh_config=sshd.config, on_line=lines.append)
    assert known["typing"] == "strongly typed"
    brought = bundle / "engines" / known["engine"]
    assert hashlib.sha256(brought.read_bytes()).hexdigest() == known["engine_sha256"]
    assert [line for line in lines if line.startswith("build: copying")] == [
        f"build: copying {each}" for each in ("model.onnx", "build.json", "build_engine.py", "build_engine.sh")
    ]
    assert any("strongly typed" in line for line in lines)
    assert sshd.left() == []
    assert device.build(bundle)["cached"]  # what was brought is known here


def test_what_is_kept_on_the_device_is_not_copied_again(rtx: Any, sshd: Sshd, tmp_path: Path) -> None:
    bundle = copied(rtx, tmp_path)
    kept = Path.home() / "toolkit-builds" / rtx.manifest["content_hash"][:16]
    lines: list[str] = []
    try:
        first = device.build(bundle, sshd.address, ssh_config=sshd.config, keep=True)
        assert (kept / "engines" / first["engine"]).is_file()
        (kept / "build.json").write_text("{}")
        again = device.build(bundle, sshd.address, ssh_config=sshd.config, keep=True, on_line=lines.append)
        assert again["cached"]
        assert [line for line in lines if "copying" in line] == ["build: copying build.json"]
        manifests.verify_files(manifests.read(bundle))  # the bundle's own engine was left alone
    finally:
        shutil.rmtree(kept, ignore_errors=True)
        if kept.parent.is_dir() and not any(kept.parent.iterdir()):
            kept.parent.rmdir()


def test_trtexec_is_used_where_python_has_no_tensorrt(jetson: Any, sshd: Sshd, tmp_path: Path) -> None:
    """With a stand-in for trtexec, which only writes a file: this shows what happens around it."""
    bundle = copied(jetson, tmp_path)
    lines: list[str] = []
    known = device.build(bundle, sshd.address, ssh_config=sshd.config, on_line=lines.append)
    assert "build: Python 3" in " ".join(lines)
    assert "trying trtexec" in " ".join(lines)
    assert (known["typing"], known["built_from"]["version"]) == ("trtexec", "10.3.0")
    assert (bundle / "engines" / "trtexec.engine").read_bytes() == b"engine"
    assert known["validation"]["rung"] == "L3"
    assert inspection.inspect(bundle)["validation"]["rung"] == "L3"
    assert rungs.sentence(known["validation"]) == "Validation rung L3 of L4: engine built on the device"
    assert sshd.left() == []
    assert (jetson.path / "engines").exists() is False


def test_what_trtexec_refuses_is_refused_and_nothing_is_left(jetson: Any, sshd: Sshd, tmp_path: Path) -> None:
    bundle = copied(jetson, tmp_path)
    stand_in = sshd.folder.parent / "trtexec"
    stand_in.write_text("#!/bin/sh\necho 'Engine could not be created'\nexit 1\n")
    with pytest.raises(RefusedError, match=r"trtexec builds no engine: Engine could not be created"):
        device.build(bundle, sshd.address, ssh_config=sshd.config)
    stand_in.unlink()
    with pytest.raises(MissingDependencyError, match="neither the Python module tensorrt nor /usr/src"):
        device.build(bundle, sshd.address, ssh_config=sshd.config)
    assert sshd.left() == []
    assert not (bundle / "engines").exists()


def test_a_device_with_another_image_is_refused(jetson: Any, sshd: Sshd) -> None:
    with pytest.raises(InputError, match=r"--image jetpack-6\.2: ssh://.* has no JetPack that is known"):
        device.build(jetson.path, sshd.address, image="jetpack-6.2", ssh_config=sshd.config)
    assert sshd.left() == []


def test_a_host_that_is_not_known_is_not_spoken_to(jetson: Any, sshd: Sshd) -> None:
    sshd.known_hosts.write_text("")
    done = run_toolkit("build", jetson.path, "--device", sshd.address, "--ssh-config", sshd.config)
    assert done.returncode == 3
    assert "is not reached: Host key verification failed" in done.stderr
    assert sshd.left() == []


def test_a_device_that_is_off_is_exit_code_3(jetson: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        done = run_toolkit("build", jetson.path, "--device", f"ssh://127.0.0.1:{free.getsockname()[1]}")
    assert done.returncode == 3
    assert "is not reached: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("address", "user", "host", "port"),
    [
        ("ssh://jetson", None, "jetson", None),
        ("ssh://me@jetson.local:2222", "me", "jetson.local", 2222),
        ("ssh://me@[fe80::1]:22", "me", "[fe80::1]", 22),
    ],
)
def test_addresses(address: str, user: str | None, host: str, port: int | None) -> None:
    found = ssh_client.parse(address)
    assert (found.user, found.host, found.port, found.name) == (user, host, port, address)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "jetson",
        "adb://x",
        "ssh://",
        "ssh://-oProxyCommand=id",
        "ssh://a b",
        "ssh://h:0",
        "ssh://h:70000",
        "ssh://h/x",
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="is no device"):
        ssh_client.parse(address)


def test_arguments_reach_the_remote_shell_as_they_are() -> None:
    assert ssh_client.parse("ssh://h").command(["echo", "a b; rm -rf /", "$(id)"])[-1] == "echo 'a b; rm -rf /' '$(id)'"

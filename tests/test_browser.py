"""Bundles in a real Chromium: what a page answers, that it is timed, and what happens when the browser goes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toolkit
from tests.conftest import run_toolkit
from tests.engine_bundles import engine_bundle
from tests.refusals import assert_refused, in_process
from toolkit.bench import run
from toolkit.bench.record import Record
from toolkit.bench.steps import Wanted
from toolkit.devices import Outcome, Settings, browser, browser_server, browser_setup, browser_steps, browser_tensors
from toolkit.errors import InputError, MissingDependencyError
from toolkit.runtime import manifest as manifests

WASM = "browser://chromium"
# Connecting or sending to an address, or asking nscd or systemd for one. Node and Chromium read which name servers
# there are, and ask none of them.
REACHED = re.compile(r"(connect|sendto|sendmsg|sendmmsg)\(.*(sa_family=AF_INET6?\b|nscd/socket|systemd[./][Rr]esolve)")
# Chromium connects a UDP socket to it to learn from the kernel whether there is a route for IPv6, and sends nothing.
IPV6_PROBE = '"2001:4860:4860::8888"'


@pytest.fixture(scope="module", autouse=True)
def ready(cache_folder: Path) -> Path:
    for name, package in (("chromium", "chromium"), ("npm", "npm")):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed: apt-get install {package}")
    done = run_toolkit("devices", "setup", "browser", "--json")
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["folder"])


@pytest.fixture(scope="module")
def bundles(encoder: Path, reviews: Path) -> dict[str, Path]:
    """The two layers of MiniLM in int8, for the two engines that a page has."""
    return {name: engine_bundle(name, encoder, reviews) for name in ("onnxruntime", "litert")}


def step_of(folder: Path, what: str, **more: Any) -> dict[str, Any]:
    """A step as `toolkit bench` asks for it."""
    examples, _ = run.examples_of(manifests.read(folder), None)
    shared = {"bundle": str(folder), "examples": examples, "threads": None, "sizes": None, "seed": 0}
    return {**shared, "what": what, "rounds": 1, "seconds": 0.2, "queries": 8, "cold": False, **more}


def connected(address: str, cache: Path) -> browser.Browser:
    device = browser.connect(address, Settings(cache))
    assert isinstance(device, browser.Browser)
    return device


def ran(address: str, cache: Path, steps: list[dict[str, Any]], progress: Any = lambda *_: None) -> Outcome:
    """What steps gave; nothing of the browser is left."""
    device = connected(address, cache)
    try:
        return device.run(steps, progress)
    finally:
        device.close()
        assert chromiums() == []


def chromiums() -> list[int]:
    """The browsers, no parts of them, that this process or one that it started has started."""
    children: dict[int, list[int]] = {}
    names = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, rest = path.read_text(errors="replace").split("(", 1)[1].rsplit(")", 1)
            number = int(path.parent.name)
            children.setdefault(int(rest.split()[1]), []).append(number)
            names[number] = name
    found, left = [], [os.getpid()]
    while left:
        number = left.pop()
        left += children.get(number, [])
        if names.get(number) == "chromium":
            with contextlib.suppress(OSError):
                if b"--type=" not in (Path("/proc") / str(number) / "cmdline").read_bytes():
                    found.append(number)
    return found


@pytest.fixture(scope="module")
def tiny(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a bundle whose file is one operator, which takes microseconds."""
    folder = tmp_path_factory.mktemp("tiny")

    def make(operator: str, domain: str = "", **attributes: Any) -> Path:
        import onnx
        from onnx import TensorProto, helper

        copy = folder / operator
        shutil.copytree(bundles["onnxruntime"], copy)
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length"])
        node = helper.make_node(operator, ["input_ids"], ["logits"], domain=domain, **attributes)
        graph = helper.make_graph([node], "tiny", [ids], [logits])
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), copy / "model.onnx")
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["artifact"]["inputs"] = manifest["artifact"]["inputs"][:1]
        assert manifest["artifact"]["inputs"][0]["name"] == "input_ids"
        (copy / "manifest.json").write_text(json.dumps(manifest))
        return copy

    return make


# --- what is measured


@pytest.fixture(scope="module")
def record(bundles: dict[str, Path], cache_folder: Path) -> Record:
    """A benchmark of the ONNX bundle with fewer starts and rounds than a user gets."""
    wanted = Wanted(seconds=0.4, starts=1, rounds=4)
    return run.bench(str(bundles["onnxruntime"]), [WASM], wanted, Settings(cache_folder))[0]


def test_a_record_says_what_ran_where(record: Record) -> None:
    assert (record.kind, record.failure) == ("measured", None)
    assert record.clock == "performance.now of the page"
    assert record.engine is not None
    assert record.engine["package"] == "onnxruntime-web"
    assert record.engine["version"] == browser_setup.PACKAGES["onnxruntime-web"].version
    assert (record.engine["provider"], record.engine["threads"], record.protocol.threads) == ("wasm", 1, 1)
    assert record.engine["clock_step_us"] == pytest.approx(5)  # 100 in a page that is not isolated
    assert record.device.address == "browser://chromium?backend=wasm"
    assert record.device.facts["browser"].partition(".")[0] in record.device.title
    assert all(not each["name"].startswith("chromium") for each in record.others["heavy_processes"])


def test_inference_is_timed_in_rounds(record: Record) -> None:
    assert record.latency is not None
    assert set(record.parts) == {"inference"}
    assert 0 < record.latency.min_ms <= record.latency.p50_ms.value <= record.latency.max_ms
    assert record.latency.count >= 50
    assert record.noise is not None
    assert record.noise.rounds == 4
    assert len(record.protocol.warm_up_runs or ()) == 4


def test_starts_are_split_and_memory_is_that_of_the_page(record: Record, bundles: dict[str, Path]) -> None:
    for start in (record.cold_start, record.warm_start):
        assert start is not None
        assert min(start.process_ms, start.load_ms, start.first_inference_ms) > 0
    assert record.memory is not None
    assert record.memory.model_delta_bytes is not None
    # Another process than the page's would not grow by the model and the engine.
    assert record.memory.model_delta_bytes > (bundles["onnxruntime"] / "model.onnx").stat().st_size
    assert record.memory.peak_rss_bytes is not None
    assert record.memory.peak_rss_bytes > record.memory.model_delta_bytes


def test_answers_of_a_page_are_those_of_the_engine(record: Record) -> None:
    assert record.answers is not None
    assert record.answers["examples"] == record.protocol.examples > 1
    assert record.answers["largest_difference"] < 0.01


def test_litert_runs_on_two_threads(bundles: dict[str, Path], cache_folder: Path) -> None:
    found = ran(f"{WASM}?threads=2", cache_folder, [step_of(bundles["litert"], "answers")])
    assert found.failed is None
    (said,) = found.results
    assert said is not None
    assert said["answers"]["largest_difference"] < 0.05
    assert (said["engine"]["package"], said["engine"]["threads"]) == ("@litertjs/core", 2)


def test_webgpu_in_software_answers_and_is_not_timed(bundles: dict[str, Path], cache_folder: Path) -> None:
    address = f"{WASM}?backend=webgpu"
    done = run_toolkit("bench", bundles["onnxruntime"], "--device", address, "--json")
    assert done.returncode == 0, done.stderr
    found = Record.model_validate_json(done.stdout)
    if not found.device.facts["adapter"]["software"]:
        pytest.skip(f"this machine has a GPU: {found.device.title}")
    assert (found.kind, found.protocol.name) == ("emulated", "answers")
    assert (found.latency, found.cold_start, found.memory, found.parts) == (None, None, None, {})
    assert found.answers is not None
    assert found.answers["largest_difference"] < 0.05
    assert found.answers["examples"] == found.protocol.examples == 3
    assert found.engine is not None
    assert found.engine["provider"] == "webgpu"
    assert found.engine["operators_on"]["WebGpuExecutionProvider"] > 0


# --- the page and its server


def test_a_page_reaches_nothing_but_its_server(bundles: dict[str, Path], cache_folder: Path) -> None:
    device = connected(WASM, cache_folder)
    work = browser_steps.Work(device.completed(step_of(bundles["onnxruntime"], "answers")))
    device.close()
    asked: list[str] = []
    with work.chromium() as chromium, work.opened(chromium) as (page, _), browser_server.serving({"x": b"x"}) as other:
        page.page.context.on("request", lambda request: asked.append(request.url))
        page.call("load")
        page.call("all")
        fetch = "address => fetch(address).then(answer => answer.status, error => error.message)"
        assert page.page.evaluate(fetch, f"{chromium.address}bench.js") == 200
        assert page.page.evaluate(fetch, f"{chromium.address}manifest.json") == 404
        assert page.page.evaluate(fetch, f"{chromium.address}bundle/../manifest.json") == 404
        assert page.page.evaluate(fetch, f"{chromium.address.rsplit('/', 2)[0]}/another/bench.js") == 404
        assert page.page.evaluate(fetch, f"{other}x") == "Failed to fetch"
        assert page.page.evaluate(fetch, "http://a-host.example/") == "Failed to fetch"
    assert any(url.endswith("ort-wasm-simd-threaded.wasm") for url in asked)
    server = chromium.address.rsplit("/", 2)[0]
    assert [url for url in asked if not url.startswith(f"{server}/")] == []


def test_a_run_looks_no_host_up(bundles: dict[str, Path], cache_folder: Path, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.fail("strace is not installed, and nothing else sees what a browser does: apt-get install strace")
    device = connected(WASM, cache_folder)
    given = device.completed(step_of(bundles["litert"], "answers"))
    device.close()
    request = {**given, "parent": 0, "result": str(tmp_path / "result.json"), "spawned": 0}
    (tmp_path / "step.json").write_text(json.dumps(request))
    # A shell between them says who the parent is.
    code = (
        "import json, os, sys; path = sys.argv[1]; step = json.load(open(path)); step['parent'] = os.getppid(); "
        "json.dump(step, open(path, 'w')); from toolkit.devices import browser_steps as b; "
        "from toolkit.bench import measure; sys.exit(measure.main(path, b.STEPS))"
    )
    trace = tmp_path / "trace.txt"
    with tempfile.TemporaryDirectory() as short:  # Chromium's socket lies in it, and its path may have 108 characters
        done = subprocess.run(
            ["strace", "-f", "--seccomp-bpf", "-e", "trace=%network,openat", "-e", "signal=none", "-o", trace, "--",
             sys.executable, "-c", code, tmp_path / "step.json"],
            capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "PYTHONPATH": str(Path(toolkit.__file__).parent.parent), "TMPDIR": short},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "answers" in json.loads((tmp_path / "result.json").read_text())
    lines = trace.read_text(errors="replace").splitlines()
    assert any("litert_wasm" in line for line in lines)  # the trace is whole
    reached = [line for line in lines if REACHED.search(line) and "127.0.0.1" not in line]
    assert [line for line in reached if IPV6_PROBE not in line] == []


@pytest.mark.parametrize("engine", ["onnxruntime", "litert"])
def test_what_is_given_comes_out_of_the_page_s_file_the_same(engine: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shape = [1, 4, 6, 3] if engine == "litert" else [1, 3, 4, 6]
    data: Any = {"engine": {"name": engine}, "artifact": {"inputs": [
        {"name": "image", "dtype": "float32", "shape": shape}, {"name": "ids", "dtype": "int32", "shape": [1, 5]},
    ]}}  # fmt: skip
    shapes = {each["name"]: each["shape"] for each in data["artifact"]["inputs"]}
    given = {"image": generator.random((1, 3, 4, 6), dtype=np.float32), "ids": np.arange(5, dtype=np.int64)[None]}
    signature, fed = browser_tensors.feeds(manifests.Manifest(tmp_path, data), given)
    assert signature == ("serve" if engine == "litert" else None)
    described, content = browser_tensors.packed([(signature, fed), (signature, fed)])
    for example in described:
        for each in example["inputs"]:
            start = each["offset"]
            assert start % 8 == 0
            array = np.frombuffer(content, each["dtype"], each["count"], start).reshape(each["dims"])
            assert each["dims"] == shapes[each["name"]]
            back = np.moveaxis(array, -1, 1) if engine == "litert" and array.ndim == 4 else array
            assert np.array_equal(back, given[each["name"]])


def test_inputs_that_litert_js_does_not_take(tmp_path: Path) -> None:
    data = {"engine": {"name": "litert"}, "artifact": {
        "path": "model.tflite", "inputs": [{"name": "image", "dtype": "int8", "shape": [1, 4, 4, 3]}],
    }}  # fmt: skip
    with pytest.raises(InputError, match=r"takes int8, and LiteRT\.js .* float32, int32, uint8"):
        browser_tensors.feeds(manifests.Manifest(tmp_path, data), {"image": np.zeros((1, 3, 4, 4), np.float32)})


# --- what goes wrong


def test_what_was_measured_before_the_browser_was_killed_is_kept(tiny: Any, cache_folder: Path) -> None:
    folder = tiny("Cast", to=1)
    killed: list[int] = []

    def kill(done: int, total: int, text: str) -> None:
        if "timing" in text and done >= total // 2 and not killed:
            killed.extend(chromiums())
            os.kill(killed[0], signal.SIGKILL)

    steps = [step_of(folder, "times"), step_of(folder, "times", seconds=60)]
    found = ran(WASM, cache_folder, steps, kill)
    assert killed
    assert found.failed is not None
    assert (found.failed["kind"], found.failed["exit_code"]) == ("crash", 3)
    assert "Chromium ended or lost its page" in found.failed["error"]
    kept, lost = found.results
    assert lost is None
    assert kept is not None
    # One operator takes less than the clock can tell.
    assert kept["engine"]["timed_together"] > 10
    assert "queries in a row were timed at a time" in kept["warnings"][0]


def test_a_run_that_takes_too_long_is_ended(bundles: dict[str, Path], cache_folder: Path) -> None:
    step = step_of(bundles["onnxruntime"], "times", seconds=60, timeout_seconds=3)
    found = ran(f"{WASM}?throttle=4", cache_folder, [step])
    assert found.failed == {"kind": "timeout", "error": "'times' did not end within 3 s and was ended.", "exit_code": 3}


def test_an_operator_that_the_page_s_engine_has_not(tiny: Any, cache_folder: Path) -> None:
    found = ran(WASM, cache_folder, [step_of(tiny("NotAnOperator", "com.microsoft"), "answers")])
    assert found.failed is not None
    assert (found.failed["kind"], found.failed["exit_code"]) == ("error", 2)
    assert "onnxruntime-web 1.30.0 cannot run" in found.failed["error"]
    assert "NotAnOperator" in found.failed["error"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("browser://firefox", "is no browser that is known; give browser://chromium"),
        ("browser://chromium/x", "is no browser that is known"),
        ("browser://chromium?cores=2", "'cores' is no parameter"),
        ("browser://chromium?threads=2&threads=1", "gives threads twice"),
        ("browser://chromium?threads=0", "threads is a number from 1 to 64, and not '0'"),
        ("browser://chromium?threads=1.5", "threads is a whole number"),
        ("browser://chromium?threads=", "and not ''"),
        ("browser://chromium?throttle=-4", "throttle is a number from 1 to 100, and not '-4'"),
        ("browser://chromium?backend=webgl", "backend is wasm or webgpu, and not 'webgl'"),
        ("browser://chromium?backend=webgpu&threads=2", "webgpu takes neither"),
        ("browser://chromium?threads=2&throttle=4", "Say threads=1"),
    ],
)  # fmt: skip
def test_addresses_that_are_none(address: str, words: str) -> None:
    with pytest.raises(InputError) as raised:
        browser.parse(address)
    assert words in str(raised.value)
    assert address.partition("?")[0] in str(raised.value)


def test_an_address_in_one_spelling() -> None:
    found = browser.parse("browser://chromium?throttle=4.0&threads=1")
    assert found == browser.Options("wasm", 1, 4.0)
    assert found.address == "browser://chromium?backend=wasm&threads=1&throttle=4"
    assert browser.parse(found.address) == found


def test_threads_that_contradict_each_other(bundles: dict[str, Path], cache_folder: Path) -> None:
    folder = bundles["onnxruntime"]
    for address, threads, words in (
        (f"{WASM}?threads=2", 1, "says threads=2, and --threads 1"),
        (f"{WASM}?throttle=2", 2, "Say threads=1"),
    ):
        with pytest.raises(InputError, match=words):
            ran(address, cache_folder, [step_of(folder, "times", threads=threads)])


def test_bundles_for_other_engines(bundles: dict[str, Path], cache_folder: Path, tmp_path: Path) -> None:
    manifest = json.loads((bundles["onnxruntime"] / "manifest.json").read_text())
    for engine in ("tensorrt", "openvino", "executorch"):
        manifest["engine"]["name"] = engine
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(
            InputError, match=f"for {engine}, which no browser runs; pages run those for onnxruntime or"
        ):
            connected(WASM, cache_folder).push(tmp_path, "bundle")


def test_what_is_missing_is_said(
    bundles: dict[str, Path],
    cache_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def bench(*more: str) -> Any:
        return in_process(["bench", str(bundles["litert"]), "--device", WASM, *more], capsys)

    assert_refused(bench("--cache-dir", str(tmp_path)), "run: toolkit devices setup browser", code=3)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "playwright", None)
        assert_refused(bench(), "pip install 'edge-deployment-toolkit[browser]'", code=3)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_refused(bench(), "On Debian: apt-get install chromium", code=3)
    with pytest.raises(MissingDependencyError, match="apt-get install npm"):
        browser_setup.setup(tmp_path)


def test_a_package_that_is_another_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = browser_setup.LITERT_LOADER
    other = dataclasses.replace(browser_setup.PACKAGES[name], integrity="sha512-AAAA")
    monkeypatch.setattr(browser_setup, "PACKAGES", {name: other})
    with pytest.raises(
        MissingDependencyError, match=r"is not the one that this toolkit knows: its hash is sha512-4fJiw"
    ):
        browser_setup.setup(tmp_path)
    monkeypatch.setattr(browser_setup, "PACKAGES", {name: dataclasses.replace(other, version="0.0.0")})
    with pytest.raises(MissingDependencyError, match="No matching version found for @litertjs/wasm-utils@0"):
        browser_setup.setup(tmp_path)
    assert list((tmp_path / "devices").iterdir()) == []


def test_a_browser_that_does_not_start(bundles: dict[str, Path], cache_folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "chromium"
    program.write_text('#!/bin/sh\necho "no display today" >&2\nexit 5\n')
    program.chmod(0o755)
    device = browser.Browser(
        browser.parse(WASM), Settings(cache_folder), program, browser_setup.folder_of(cache_folder)
    )
    found = device.run([step_of(bundles["onnxruntime"], "answers")], lambda *_: None)
    device.close()
    assert found.failed is not None
    assert (found.failed["kind"], found.failed["exit_code"]) == ("error", 3)
    assert f"{program} does not start" in found.failed["error"]
    assert "no display today" in found.failed["error"]


def test_a_temporary_folder_that_is_too_long_for_a_socket(
    bundles: dict[str, Path], cache_folder: Path, tmp_path: Path
) -> None:
    long = tmp_path / ("a" * 100)
    long.mkdir()
    environ = {"TMPDIR": str(long), "TOOLKIT_CACHE": str(cache_folder)}
    done = run_toolkit("bench", bundles["onnxruntime"], "--device", WASM, "--seconds", "0.2", environ=environ)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "$TMPDIR may be too long for its socket" in done.stderr


def test_devices_are_listed() -> None:
    found = {each["device"]: each["state"] for each in json.loads(run_toolkit("devices", "list", "--json").stdout)}
    assert found[WASM] == found[f"{WASM}?backend=webgpu"] == "ready"

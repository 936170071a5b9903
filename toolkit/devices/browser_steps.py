"""One step of a benchmark in a browser: the browser is started, a page runs the bundle and times itself.

    python -m toolkit.devices.browser_steps STEP.json

Run by `toolkit.bench.runner` in a process of its own, as `toolkit.bench.measure` is for this machine. Examples are
encoded here, so what is timed is the inference: from inputs in the page's memory to outputs in it. The step's `browser`
says what to start and what for: `program`, `packages` (the folder of `browser_setup`), `backend`, `threads`,
`throttle`.
"""

from __future__ import annotations

import base64
import contextlib
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.bench import conditions, encoding, measure, memory
from toolkit.bench.runner import StepError
from toolkit.devices import browser_setup, browser_tensors
from toolkit.devices.browser_server import Content, serving
from toolkit.errors import InputError, MissingDependencyError, missing_extra
from toolkit.runtime.manifest import Manifest

PAGE = Path(__file__).with_name("browser_page")
_WARM_UP_SECONDS = 20.0
_STEPS_OF_CLOCK = 100  # that a sample has at least
_ORDERS = 16  # of the examples, drawn anew
_SPIN_MS = 60
_LONGEST_TMPDIR = 64  # of the 108 characters of a Unix socket's path Chromium takes the rest
_EXAMPLES_IN_SOFTWARE = 3  # a GPU in software takes seconds for each
_FAILURE = re.compile(r"E\d{4} |ERROR: ")
_MOST_OF_A_LINE = 300
_PLACED = re.compile(r"(?:Node\(s\)|All nodes) placed on \[(\w+)\]. Number of nodes: (\d+)")
# The browser asks nobody for updates, accounts or addresses, and no page could have it ask.
_SILENT = (
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic",
    "--no-first-run", "--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
_BACKENDS = {
    "wasm": ("--disable-gpu",),
    "webgpu": ("--enable-unsafe-webgpu", "--ignore-gpu-blocklist"),
    "webgpu in software": ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"),
}


@dataclass
class Chromium:
    """A browser that was started, and the seconds that it took; `address` is where its pages are."""

    browser: Any
    address: str
    seconds: float


@dataclass
class Tab:
    """A page that is open, with its examples but without the bundle."""

    page: Any
    browser: Any
    runtime: str
    artifact: Path
    said: list[str]  # on the page's console
    opened_seconds: float

    def call(self, name: str, given: Any = None) -> Any:
        """What a function of the page gives. Raises InputError for what the bundle's runtime says, StepError if the
        browser is gone."""
        with lost():
            answer = self.page.evaluate("([name, given]) => call(name, given)", [name, given])
        if "error" in answer:
            raise InputError(f"{self.runtime} cannot run {self.artifact} in the browser: {self._why(answer['error'])}")
        return answer["value"]

    def _why(self, error: str) -> str:
        """What the runtime threw, on one line, and the first failure that it told the console."""
        found = (re.sub(r"^E\d{4} [\d:.]+ +\d+ \S+ ", "", line) for line in self.said if _FAILURE.match(line))
        told = next((line[:_MOST_OF_A_LINE] for line in found if line not in error), None)
        return " ".join(error.split()) + (f" ({told})" if told else "")

    def placed(self) -> dict[str, int]:
        """How many of a graph's operators run where, as onnxruntime told the console while it loaded."""
        found = (_PLACED.search(line) for line in self.said)
        return {each[1]: int(each[2]) for each in found if each}

    def process(self) -> Path:
        """The page's process. Chromium does not say which it is, but how much processor time it has had; of those that
        it has for pages (its own windows are such, too) the one with that much before and after some work."""
        with lost():
            browser = self.browser.new_browser_cdp_session()
            own = self.page.context.new_cdp_session(self.page)
            own.send("Performance.enable")

            def read() -> dict[int, float]:
                """How far each process's time lies from that of the page's."""
                metrics = {each["name"]: each["value"] for each in own.send("Performance.getMetrics")["metrics"]}
                found = browser.send("SystemInfo.getProcessInfo")["processInfo"]
                pages = [each for each in found if each["type"] == "renderer"]
                return {int(each["id"]): abs(each["cpuTime"] - metrics["ProcessTime"]) for each in pages}

            before = read()
            self.call("spin", _SPIN_MS)
            after = read()
            own.detach()
            browser.detach()
        return Path("/proc") / str(min(after, key=lambda number: after[number] + before.get(number, math.inf)))


@contextlib.contextmanager
def lost() -> Iterator[None]:
    """Tell of a browser that is gone, or has lost its page, as a crash of the step."""
    from playwright.sync_api import Error

    try:
        yield
    except Error as error:
        said = error.message.strip().splitlines()[0]
        raise StepError("crash", f"Chromium ended or lost its page: {said}", 3) from error


@contextlib.contextmanager
def started(setting: Mapping[str, Any], content: Content, backend: str) -> Iterator[Chromium]:
    """A browser with a profile of its own, and a server of `content` for its pages. Raises MissingDependencyError."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise missing_extra("playwright", "browser", "Running a bundle in a browser") from error
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True))
        address = stack.enter_context(serving(content))
        playwright = stack.enter_context(sync_playwright())
        began = time.perf_counter()
        try:
            browser = playwright.chromium.launch(
                executable_path=setting["program"],
                args=[*_SILENT, *_BACKENDS[backend]],
                # As root it has no sandbox, and refuses to start unless that is said.
                chromium_sandbox=os.geteuid() != 0,
                env={**os.environ, "HOME": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home},
            )
        except Error as error:
            said = re.findall(r"\[err\] (.+)", error.message) or error.message.strip().splitlines()[:1]
            temporary = tempfile.gettempdir()
            advice = (
                f". $TMPDIR may be too long for its socket: {temporary}" if len(temporary) > _LONGEST_TMPDIR else ""
            )
            text = f"{setting['program']} does not start: {said[-1].strip()}{advice}"
            raise MissingDependencyError(text) from error
        try:
            yield Chromium(browser, address, time.perf_counter() - began)
        finally:
            with contextlib.suppress(Error):
                browser.close()


@contextlib.contextmanager
def tab(chromium: Chromium, setting: Mapping[str, Any], runtime: str, artifact: Path) -> Iterator[Tab]:
    """A page in a window of its own, which shares nothing with those before it."""
    began = time.perf_counter()
    with lost():
        context = chromium.browser.new_context()
        page = context.new_page()
        if setting.get("throttle", 1) != 1:
            context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": setting["throttle"]})
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        opened = time.perf_counter() - began
        page.goto(f"{chromium.address}index.html")
    try:
        yield Tab(page, chromium.browser, runtime, artifact, said, opened)
    finally:
        from playwright.sync_api import Error

        with contextlib.suppress(Error):
            context.close()


class Work:
    """A step's bundle and examples, as a page takes them."""

    def __init__(self, step: Mapping[str, Any]) -> None:
        self.setting: dict[str, Any] = step["browser"]
        self.manifest, self.inputs = encoding.encoded(Path(step["bundle"]), step["examples"], step.get("sizes"))
        self.threads = threads_of(step, self.manifest)
        self.package = browser_setup.RUNTIMES[self.manifest.engine]
        self.runtime = f"{self.package} {browser_setup.PACKAGES[self.package].version}"
        files = [str(self.manifest.data["artifact"]["path"]), *self.manifest.data["artifact"].get("data_files", ())]
        fed = [browser_tensors.feeds(self.manifest, each) for each in self.inputs]
        described, content = browser_tensors.packed(fed)
        self._given = {
            "runtime": self.package,
            "backend": self.setting["backend"].partition(" ")[0],
            "threads": self.threads,
            "model": f"bundle/{files[0]}",
            "data": [f"bundle/{name}" for name in files[1:]],
            "examples": described,
        }
        self.content: dict[str, Path | bytes] = page_files(Path(self.setting["packages"]))
        self.content |= {"inputs.bin": content} | {f"bundle/{name}": self.manifest.path(name) for name in files}

    def chromium(self) -> contextlib.AbstractContextManager[Chromium]:
        """A browser for it."""
        return started(self.setting, self.content, self.setting["backend"])

    @contextlib.contextmanager
    def opened(self, chromium: Chromium) -> Iterator[tuple[Tab, dict[str, Any]]]:
        """A page with the examples, and what it says of itself."""
        with tab(chromium, self.setting, self.runtime, self.manifest.artifact) as page:
            said = page.call("prepare", self._given)
            if not said["isolated"]:
                raise StepError("error", "The page is not isolated, so it has neither threads nor an exact clock.", 3)
            yield page, said

    def describe(self, **more: Any) -> dict[str, Any]:
        """The engine's part of a result."""
        version = browser_setup.PACKAGES[self.package].version
        facts = {"engine": self.manifest.engine, "package": self.package, "version": version}
        return {**facts, "provider": self._given["backend"], "threads": self.threads, **more}


def threads_of(step: Mapping[str, Any], manifest: Manifest) -> int:
    """The threads of a step: its own, those of the device's address, or the bundle's."""
    return int(step.get("threads") or step["browser"].get("threads") or manifest.threads)


def page_files(packages: Path) -> dict[str, Path | bytes]:
    """The page and the engines, by their paths in its address."""
    found: dict[str, Path | bytes] = {path.name: path for path in PAGE.iterdir() if path.is_file()}
    for name, package in browser_setup.PACKAGES.items():
        found |= {f"runtime/{name}/{file}": packages / name / file for file in package.files}
    return found


def start(step: Mapping[str, Any], progress: measure.Progress) -> dict[str, Any]:
    """A cold start: the browser, the page with its engine and the bundle, the first inference; and the memory of the
    page's process."""
    work = Work(step)
    with work.chromium() as chromium, work.opened(chromium) as (page, said):
        process = page.process()
        before = memory.now(process)
        loaded = page.call("load")
        after_load = memory.now(process)
        first = page.call("first")
        after_first = memory.now(process)
        page.call("all")
        memory.reset_peak(process)
        page.call("all")
        running = memory.now(process)
    return {
        "process_s": chromium.seconds + page.opened_seconds,
        "load_s": (said["page_ms"] + loaded) / 1e3,
        "first_inference_s": first / 1e3,
        "memory": {
            "before_load": before,
            "after_load": after_load,
            "after_first_inference": after_first,
            "running": running,
            "peak_rss_bytes": max(filter(None, (m["peak_rss_bytes"] for m in (after_first, running))), default=None),
            "gpu_bytes": None,
        },
        "engine": work.describe(),
    }


def times(step: Mapping[str, Any], progress: measure.Progress) -> dict[str, Any]:
    """Inferences one after the other, in rounds with a page each; the same protocol as that of `measure.times`.

    The clock of a page goes in steps. Of queries that are shorter than a hundred of them several are taken at a time,
    of the same example, and a sample is their mean: `timed_together` of the engine's part says how many.
    """
    work = Work(step)
    generator = np.random.default_rng(step["seed"])
    rounds: list[dict[str, list[float]]] = []
    warm_ups: list[int] = []
    stable, together, clock = True, 0, 0.0
    others = conditions.Others()
    count = step["rounds"]
    with work.chromium() as chromium:
        for number in range(count):
            with work.opened(chromium) as (page, _):
                progress(number, count, f"round {number + 1} of {count}: warming up")
                page.call("load")
                warm = page.call("warmUp", _WARM_UP_SECONDS)
                warm_ups.append(warm["made"])
                stable = stable and warm["stable"]
                if not together:
                    clock = page.call("clock")
                    together = max(1, math.ceil(_STEPS_OF_CLOCK * clock / max(warm["fastest_ms"], clock)))
                progress(number, count, f"round {number + 1} of {count}: timing")
                orders = [generator.permutation(len(work.inputs)).tolist() for _ in range(_ORDERS)]
                asked = {"seconds": step["seconds"] / count, "least": step["queries"] / count}
                found = page.call("times", {**asked, "orders": orders, "together": together})
                rounds.append({"inference": (np.frombuffer(base64.b64decode(found)) / 1e3).tolist()})
        watched = others.read(family())
    progress(count, count, "done")
    warnings = []
    if together > 1:
        warnings.append(
            f"the page's clock goes in steps of {clock * 1e3:.0f} µs, so {together} queries in a row were timed at a "
            "time: what single ones of them took is not known"
        )
    return {
        "rounds": rounds,
        "warm_up_runs": warm_ups,
        "stable": stable,
        "engine": work.describe(clock_step_us=round(clock * 1e3, 3), timed_together=together),
        "others": watched,
        "warnings": warnings,
    }


def answers(step: Mapping[str, Any], progress: measure.Progress) -> dict[str, Any]:
    """How the page's answers compare with those of the bundle's engine on this machine."""
    software = step["browser"].get("software")
    work = Work({**step, "examples": step["examples"][:_EXAMPLES_IN_SOFTWARE]} if software else step)
    with work.chromium() as chromium, work.opened(chromium) as (page, _):
        page.call("load", {"verbose": work.setting["backend"] != "wasm"})
        found = [browser_tensors.unpacked(each) for each in page.call("answers")]
        placed = page.placed()
    described = work.describe(**({"operators_on": placed} if placed else {}))
    return {"answers": encoding.compared(work.manifest, work.inputs, found), "engine": described}


def adapter(step: Mapping[str, Any], progress: measure.Progress) -> dict[str, Any]:
    """What WebGPU runs on: the GPU, or where there is none Chromium's own software for it."""
    setting: dict[str, Any] = step["browser"]
    content: Content = page_files(Path(setting["packages"]))
    for backend in ("webgpu", "webgpu in software"):
        with started(setting, content, backend) as chromium, tab(chromium, setting, "WebGPU", Path()) as page:
            found = page.call("adapter")
        if found is not None:
            software = found.pop("fallback") or found["architecture"] in ("swiftshader", "llvmpipe")
            return {**found, "backend": backend, "software": software}
    raise MissingDependencyError("This Chromium has no WebGPU, neither on a GPU nor in software.")


def family() -> set[int]:
    """This process, the one that started it, and all that it started and they started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = path.read_text(errors="replace")
            parents[int(path.parent.name)] = int(text[text.rindex(")") + 2 :].split()[1])
    found = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found | {os.getppid()}


STEPS: measure.Steps = {
    "start": start,
    "times": times,
    "answers": answers,
    "adapter": adapter,
}


if __name__ == "__main__":
    sys.exit(measure.main(sys.argv[1], STEPS))

"""A browser on this machine: what a bundle does in a web page.

    browser://chromium[?backend=wasm|webgpu&threads=N&throttle=N]

ONNX bundles run in onnxruntime-web, LiteRT ones in LiteRT.js, as `toolkit devices setup browser` fetched them, in a
Chromium that is installed. The page is served from this machine and reaches nothing else.
"""

from __future__ import annotations

import re
import subprocess
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.devices import Outcome, Progress, Settings, browser_setup, local, runs
from toolkit.errors import InputError, MissingDependencyError, missing_extra

SCHEME = "browser"
CHROMIUM = "chromium"
BACKENDS = ("wasm", "webgpu")
_SHAPE = f"{SCHEME}://{CHROMIUM}[?backend={'|'.join(BACKENDS)}&threads=N&throttle=N]"
_PROGRAM = "toolkit.devices.browser_steps"
_MOST_THREADS, _MOST_THROTTLE = 64, 100.0
_FOLDERS = ("/usr/lib/chromium", "/usr/lib/chromium-browser")  # where distributions have the browser's own files


@dataclass(frozen=True)
class Options:
    """What an address says. `threads`: those of the bundle if it does not; `throttle`: how many times slower the page's
    processor is made."""

    backend: str = "wasm"
    threads: int | None = None
    throttle: float = 1.0

    @property
    def address(self) -> str:
        """In one spelling."""
        said = {"backend": self.backend, "threads": self.threads}
        query = {name: str(value) for name, value in said.items() if value is not None}
        if self.throttle != 1:
            query["throttle"] = f"{self.throttle:g}"
        return f"{SCHEME}://{CHROMIUM}?{urllib.parse.urlencode(query)}"


def parse(address: str) -> Options:
    """What an address says. Raises InputError."""
    place, _, query = address.partition("?")
    if place != f"{SCHEME}://{CHROMIUM}":
        raise InputError(f"'{address}' is no browser that is known; give {_SHAPE}.")
    given: dict[str, str] = {}
    for name, value in urllib.parse.parse_qsl(query, keep_blank_values=True):
        if name not in ("backend", "threads", "throttle"):
            raise InputError(f"'{address}': '{name}' is no parameter of a browser; give {_SHAPE}.")
        if name in given:
            raise InputError(f"'{address}' gives {name} twice.")
        given[name] = value
    backend = given.get("backend", BACKENDS[0])
    if backend not in BACKENDS:
        raise InputError(f"'{address}': backend is {' or '.join(BACKENDS)}, and not '{backend}'.")
    threads = _number(address, "threads", given.get("threads"), _MOST_THREADS)
    throttle = _number(address, "throttle", given.get("throttle"), _MOST_THROTTLE)
    if threads is not None and threads != int(threads):
        raise InputError(f"'{address}': threads is a whole number.")
    found = Options(backend, int(threads) if threads else None, throttle or 1.0)
    if backend == "webgpu" and (threads or throttle):
        raise InputError(f"'{address}': threads and throttle are of the processor; webgpu takes neither.")
    _check_throttle(found, found.threads)
    return found


def _number(address: str, name: str, text: str | None, most: float) -> float | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not 1 <= float(text) <= most:
        raise InputError(f"'{address}': {name} is a number from 1 to {most:g}, and not '{text}'.")
    return float(text)


def _check_throttle(options: Options, threads: int | None) -> None:
    if options.throttle != 1 and (threads or 1) > 1:
        raise InputError(
            f"{options.address}: throttle slows the page's own thread and none of its workers, so {threads} threads "
            "would not be slower alike. Say threads=1."
        )


class Browser:
    """Chromium as it is installed, with one way of running bundles."""

    here = True

    def __init__(self, options: Options, settings: Settings, program: Path, packages: Path) -> None:
        self._options = options
        self._program, self._packages = program, packages
        self._here = runs.Here(settings.limits, _PROGRAM)
        self.address = options.address
        self.kind: Literal["measured", "emulated"] = "measured" if options.throttle == 1 else "emulated"
        self.clock = "performance.now of the page"
        if options.throttle != 1:
            self.clock += f", its processor made {options.throttle:g} times slower"
        self.steps = frozenset({"start", "times", "answers"})
        self._backend = options.backend
        self._adapter: dict[str, Any] | None = None

    def find_adapter(self) -> None:
        """Find out what WebGPU runs on. In software it answers, but its times are nobody's. Raises
        MissingDependencyError."""
        found = self._here.run([self.completed({"what": "adapter"})], lambda *_: None)
        self._adapter = found.results[0]
        if self._adapter is None:
            raise MissingDependencyError(f"{self.address}: {(found.failed or {}).get('error')}")
        self._backend = self._adapter["backend"]
        if self._adapter["software"]:
            self.kind, self.clock, self.steps = "emulated", "none: a GPU in software", frozenset({"answers"})

    def describe(self) -> dict[str, Any]:
        """This machine, the browser and what bundles run on in it."""
        machine = local.describe()
        version = _version(self._program)
        how = [f"Chromium {version.partition('.')[0]}", self._options.backend]
        if self._options.throttle != 1:
            how.append(f"{self._options.throttle:g} times slower")
        place = machine["cpu_model"]
        if self._adapter is not None:
            said = [self._adapter["vendor"], self._adapter["architecture"], self._adapter["description"]]
            place = " ".join(dict.fromkeys(filter(None, said))) or "a GPU that does not say which"
        return {
            **machine,
            "device": self.address,
            "title": f"{', '.join(how)}, on {place}",
            "browser": version,
            "backend": self._options.backend,
            "throttle": self._options.throttle,
            "adapter": self._adapter,
            **browser_setup.read(self._packages),
        }

    def push(self, source: Path, name: str) -> str:
        """Nothing has to be brought: the page's server reads the folder. Raises InputError for a bundle that no page
        can run."""
        from toolkit.runtime import manifest as manifests

        engine = manifests.read(source).engine
        if engine not in browser_setup.RUNTIMES:
            known = " or ".join(browser_setup.RUNTIMES)
            raise InputError(f"{source} is a bundle for {engine}, which no browser runs; pages run those for {known}.")
        return str(source.resolve())

    def run(self, steps: list[dict[str, Any]], progress: Progress) -> Outcome:
        """Run steps by a runner that dies with this process. Raises InputError for threads that cannot be."""
        self._check_threads(steps)
        return self._here.run([self.completed(step) for step in steps], progress)

    def _check_threads(self, steps: list[dict[str, Any]]) -> None:
        from toolkit.runtime import manifest as manifests

        said = self._options.threads
        for step in steps:
            asked = step.get("threads")
            if asked and self._options.backend == "webgpu":
                raise InputError(f"{self.address} has no threads to choose; leave --threads {asked} out.")
            if asked and said and asked != said and not step.get("point"):
                raise InputError(f"{self.address} says threads={said}, and --threads {asked}; leave one of them out.")
            _check_throttle(self._options, asked or said or manifests.read(Path(step["bundle"])).threads)

    def completed(self, step: Mapping[str, Any]) -> dict[str, Any]:
        """A step with all that `browser_steps` and a cold start have to know."""
        given = {
            "program": str(self._program), "packages": str(self._packages), "backend": self._backend,
            "threads": 1 if self._options.backend == "webgpu" else self._options.threads,
            "throttle": self._options.throttle,
            "software": self._adapter is not None and self._adapter["software"],
        }  # fmt: skip
        folders = [str(self._packages), *(folder for folder in _FOLDERS if Path(folder).is_dir())]
        return {**step, "browser": given, "loads": folders}

    def pull(self, name: str) -> bytes:
        """A file of the last run."""
        return self._here.pull(name)

    def close(self) -> None:
        """Remove what the runs wrote."""
        self._here.close()


def _version(program: Path) -> str:
    """The version of the browser. Raises MissingDependencyError if it does not say."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
        found = re.search(r"(\d+\.[\d.]+)", done.stdout)
    except (OSError, subprocess.SubprocessError):
        found = None
    if found is None:
        raise MissingDependencyError(f"{program} --version names no version; is it Chromium?")
    return found[1]


def addresses() -> dict[str, str]:
    """Examples of addresses and what they are."""
    return {
        f"{SCHEME}://{CHROMIUM}": "Chromium on this machine: times and memory of a web page",
        f"{SCHEME}://{CHROMIUM}?backend=webgpu": "the same on its GPU; answers alone where there is none",
    }


def connect(address: str, settings: Settings) -> Browser:
    """The browser at an address. Raises InputError for one that is none, MissingDependencyError for one that is not
    installed or not set up."""
    import importlib.util

    options = parse(address)
    local.check_cores(settings)
    program = browser_setup.browser()
    if not browser_setup.is_ready(settings.cache):
        raise MissingDependencyError(f"{address} is not set up; run: toolkit devices setup browser")
    if importlib.util.find_spec("playwright") is None:
        raise missing_extra("playwright", "browser", "Running a bundle in a browser")
    device = Browser(options, settings, program, browser_setup.folder_of(settings.cache))
    if options.backend == "webgpu":
        try:
            device.find_adapter()
        except BaseException:
            device.close()
            raise
    return device

"""Nothing phones home: a minute of running bundles and a whole conversion make no look-up and no connection.

Each process runs in a network namespace of its own, where there is no route, under strace, which sees what Python
cannot: C++ code that looks a host up. A control process with onnxruntime's switch removed proves that the test would
see it. The minute is the point: onnxruntime waits for tens of seconds before it looks its upload host up.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import toolkit
from tests.engine_bundles import ENGINES, engine_bundle

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="network namespaces and strace are Linux's")

ALIVE_S = 60
LIMIT_S = 130

# Connecting or sending to an internet address (a name server's too), asking nscd or systemd for a host, reading which
# name server to ask. Not netlink, not socket pairs, not a socket that is bound to find out whether IPv6 exists.
LOOK_UP = re.compile(
    r"(connect|sendto|sendmsg|sendmmsg)\(.*(sa_family=AF_INET6?\b|nscd/socket|systemd\.Resolve|systemd/resolve)"
    r"|open(at)?\(.*/resolv\.conf\""
)

RUNTIME = """\
import os, sys, time
import toolkit
from toolkit import silence
if sys.argv[1] == "control":
    del os.environ["ORT_DISABLE_TELEMETRY"], silence.TELEMETRY_OFF["ORT_DISABLE_TELEMETRY"]
pipelines = [toolkit.load(folder) for folder in sys.argv[3:]]
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    for pipeline in pipelines:
        pipeline("a quiet, brilliant film")
    time.sleep(0.5)
print("done")
"""

# Export, quantize and evaluate in this process, which stays alive, and a whole conversion in children meanwhile.
CONVERSION = """\
import sys, time
from pathlib import Path
import toolkit
from toolkit import stages
from toolkit.stages import process
seconds, checkpoint, data, work = float(sys.argv[1]), *map(Path, sys.argv[2:])
context = stages.Context(task="text-classification")

def run(stage, source, **parameters):
    output = work / f"{len(list(work.iterdir()))}-{stage}"
    output.mkdir()
    request = {"stage": stage, "source": source, "parameters": parameters, "output": output}
    process.run_request(request, context)
    return output

prepared = run("prepare", checkpoint, data=str(data), evaluate_only=True, known_labels=["negative", "positive"])
context = stages.Context(task="text-classification", data=prepared)
exported = run("export", checkpoint, format="onnx", ort_fusions=True)
quantized = run("quantize", exported, method="dynamic-int8")
run("evaluate", quantized, engine="onnxruntime", encoding={"max_length": 128})
exported = run("export", checkpoint, format="openvino")
prepared = run("prepare", checkpoint, data=str(data), known_labels=["negative", "positive"])
context = stages.Context(task="text-classification", data=prepared)
quantized = run("quantize", exported, method="static-int8", examples={"samples": 16})
run("evaluate", quantized, engine="openvino", encoding={"max_length": 128})
end = time.monotonic() + seconds
made = toolkit.convert(
    checkpoint, data=str(data), output=str(work / "bundle"), cache_dir=str(work / "cache"), min_score="90%"
)
assert made.manifest["accepted"] and len(made.summary["candidates"]) == 4
time.sleep(max(0, end - time.monotonic()))
print("done")
"""


def look_ups(trace: Path) -> list[str]:
    """The lines of a trace that are attempts to reach a network."""
    return [line for line in trace.read_text(errors="replace").splitlines() if LOOK_UP.search(line)]


class Traced:
    """A Python process without a route, under strace, with an environment that switches nothing off by itself."""

    def __init__(self, folder: Path, code: str, *arguments: object) -> None:
        folder.mkdir()
        self.trace, self.log = folder / "trace.txt", folder / "log.txt"
        kept = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV")  # above all not CI
        environ = {name: os.environ[name] for name in kept if name in os.environ}
        environ["PYTHONPATH"] = str(Path(toolkit.__file__).parent.parent)
        environ["LOGNAME"] = "nobody"  # torch wants a user name, and would ask nscd for it
        self.trace.touch()
        command = [
            "unshare", "--map-root-user", "--net", "--",
            "strace", "-f", "--seccomp-bpf", "-e", "trace=%network,openat", "-e", "signal=none", "-o", self.trace, "--",
            sys.executable, "-c", code, *map(str, arguments),
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, start_new_session=True
            )

    def finish(self) -> None:
        """Wait for the end, which has to be a good one."""
        code = self.process.wait(LIMIT_S)
        text = self.log.read_text(errors="replace")
        assert code == 0, text[-3000:]
        assert text.rstrip().endswith("done"), text[-3000:]

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(20)


@pytest.fixture(scope="module")
def traced(
    encoder: Path,
    reviews: Path,
    tuned: Path,
    sentences: list[tuple[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Traced]]:
    """All three processes, started together to wait once."""
    for tool, package in (("strace", "strace"), ("unshare", "util-linux")):
        if shutil.which(tool) is None:
            pytest.fail(f"{tool} is not installed, and nothing else sees what C++ code does: apt-get install {package}")
    folder = tmp_path_factory.mktemp("silent")
    bundles = [engine_bundle(engine, encoder, reviews) for engine in ENGINES]
    data = folder / "reviews.csv"
    data.write_text("text,label\n" + "".join(f'"{t.replace(chr(34), "")}",{label}\n' for t, label in sentences[:200]))
    (folder / "work").mkdir()
    started: dict[str, Traced] = {}
    try:
        started["conversion"] = Traced(folder / "conversion", CONVERSION, ALIVE_S, tuned, data, folder / "work")
        started["runtime"] = Traced(folder / "runtime", RUNTIME, "silent", ALIVE_S, *bundles)
        started["control"] = Traced(
            folder / "control", RUNTIME, "control", LIMIT_S, bundles[ENGINES.index("onnxruntime")]
        )
        yield started
    finally:
        for process in started.values():
            process.stop()


def test_the_control_is_seen_to_look_its_host_up(traced: dict[str, Traced]) -> None:
    """Without ORT_DISABLE_TELEMETRY there is a look-up: the test can fail, and the switch is still needed."""
    control = traced["control"]
    end = time.monotonic() + LIMIT_S - 10
    while not look_ups(control.trace) and time.monotonic() < end:
        assert control.process.poll() is None, control.log.read_text(errors="replace")
        time.sleep(1)
    assert look_ups(control.trace)


def test_running_bundles_is_silent(traced: dict[str, Traced]) -> None:
    traced["runtime"].finish()
    assert look_ups(traced["runtime"].trace) == []
    opened = traced["runtime"].trace.read_text(errors="replace")
    assert "libonnxruntime" in opened or "onnxruntime_pybind11_state" in opened  # the trace is whole
    assert "libopenvino_intel_cpu_plugin" in opened


def test_converting_is_silent(traced: dict[str, Traced]) -> None:
    traced["conversion"].finish()
    assert look_ups(traced["conversion"].trace) == []
    opened = traced["conversion"].trace.read_text(errors="replace")
    for library in ("torch", "transformers", "onnxruntime", "litert_torch", "ai_edge_quantizer", "openvino", "nncf"):
        assert f"site-packages/{library}/" in opened, f"{library} was not used: the conversion did not cover it"


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ('1 connect(8, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("10.0.0.1")}, 16) = 0', True),
        ('1 connect(8, {sa_family=AF_INET6, sin6_port=htons(443), sin6_flowinfo=htonl(0)}, 28 <unfinished ...>', True),
        ('1 sendto(8, "x", 1, 0, {sa_family=AF_INET, sin_port=htons(53)}, 16) = 1', True),
        ('1 connect(8, {sa_family=AF_UNIX, sun_path="/var/run/nscd/socket"}, 110) = -1 ENOENT', True),
        ('1 openat(AT_FDCWD, "/etc/resolv.conf", O_RDONLY|O_CLOEXEC) = 3', True),
        ("1 socketpair(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0, [3, 4]) = 0", False),
        ("1 sendto(3, [{nlmsg_len=20}], 20, 0, {sa_family=AF_NETLINK, nl_pid=0}, 12) = 20", False),
        ('1 bind(3, {sa_family=AF_INET6, sin6_port=htons(0)}, 28) = 0', False),
        ('1 openat(AT_FDCWD, "/etc/nsswitch.conf", O_RDONLY|O_CLOEXEC) = 3', False),
    ],
)  # fmt: skip
def test_what_counts_as_a_look_up(line: str, seen: bool, tmp_path: Path) -> None:
    (tmp_path / "trace.txt").write_text(line)
    assert bool(look_ups(tmp_path / "trace.txt")) == seen

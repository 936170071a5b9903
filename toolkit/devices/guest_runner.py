"""The benchmark's runner inside a whole emulated machine, whose files nobody outside can see.

    python -m toolkit.devices.guest_runner

The request lies on a disk. Whatever the runner writes that counts, its progress, each step's result and how it ended,
goes out through a port as one line of JSON: {"name": of the file, "content": what is in it}.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from toolkit.bench import runner
from toolkit.storage import write_json

STARTED = "started"  # the name of the first line, which says that the machine runs
_REQUEST = Path("/mnt/request")
_PORTS = "vport*"


class Port:
    """The way out."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb", buffering=0)

    def send(self, name: str, content: str) -> None:
        """One file."""
        line = json.dumps({"name": name, "content": content}).encode() + b"\n"
        while line:
            line = line[self._stream.write(line) :]


class GuestRunner(runner.Runner):
    """A runner that hands out what it writes."""

    def __init__(self, folder: Path, port: Port) -> None:
        super().__init__(folder)
        self._port, self._sent = port, 0

    def _say(self, number: int, done: int, total: int, text: str) -> None:
        super()._say(number, done, total, text)
        self.send_results(number)
        self._port.send(runner.PROGRESS, (self._folder / runner.PROGRESS).read_text(encoding="utf-8"))

    def send_results(self, until: int) -> None:
        """The results of the steps before `until`, as far as they are not out yet."""
        for number in range(self._sent, until):
            file = self._folder / runner.step_file(number)
            if file.exists():
                self._port.send(file.name, file.read_text(encoding="utf-8"))
        self._sent = max(self._sent, until)


def main() -> None:
    """Run the request."""
    port = Port(next(Path("/dev").glob(_PORTS)))
    port.send(STARTED, "")
    request: dict[str, Any] = json.loads(_REQUEST.read_bytes().rstrip(b"\0"))
    folder = Path(tempfile.mkdtemp(prefix="toolkit-bench-"))
    write_json(folder / runner.REQUEST, request)
    running = GuestRunner(folder, port)
    ended = running.run()
    running.send_results(len(request["steps"]))
    port.send(runner.ENDED, json.dumps(ended))


if __name__ == "__main__":
    main()

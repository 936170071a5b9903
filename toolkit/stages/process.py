"""The child process that runs one stage: `python -m toolkit.stages.process REQUEST.json`.

A process of its own gives every stage a peak memory that is its own, keeps one library's threads and globals away
from the next, and lets two stages run side by side.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from toolkit import child, stages
from toolkit.errors import ToolkitError
from toolkit.storage import explained, write_json


def run_request(request: dict[str, Any], context: stages.Context) -> dict[str, Any]:
    """Run the requested stage in this process: report, seconds, peak memory."""
    started = time.monotonic()
    stage = stages.get(request["stage"])
    parameters = stage.Parameters.model_validate(request["parameters"])
    output = Path(request["output"])
    with explained(f"running the stage '{request['stage']}'", output):
        report = stage.run(Path(request["source"]), output, parameters, context)
    seconds = round(time.monotonic() - started, 3)
    return {"report": report, "seconds": seconds, "peak_rss_bytes": child.peak_rss_bytes()}


def _fail(request: dict[str, Any], answer: dict[str, Any]) -> None:
    """Leave the error for the parent; what was written of the output goes first, because it may fill the disk."""
    shutil.rmtree(request["output"], ignore_errors=True)
    write_json(Path(request["result"]), answer)


def main(request_file: str, **inherited: int) -> int:
    """Run the stage that `request_file` describes; 0 on success, 1 with an `error` in the result file.

    In a process that was forked (`toolkit.warm`), `inherited` has what differs from the request: the `parent`'s id and
    the `progress` pipe's number.
    """
    request = json.loads(Path(request_file).read_text(encoding="utf-8")) | inherited
    child.die_with_parent(int(request["parent"]))
    context = stages.Context(
        task=request["task"],
        seed=request["seed"],
        threads=request["threads"],
        data=Path(request["data"]) if request["data"] else None,
        resume=Path(request["resume"]) if request["resume"] else None,
        progress=child.reporter(int(request["progress"])),
    )
    result = Path(request["result"])
    try:
        write_json(result, run_request(request, context))
    except ToolkitError as error:
        _fail(request, {"error": str(error), "exit_code": error.exit_code})
        return 1
    except Exception as error:  # a library's own failure: one line for people, the traceback for --debug
        first = (str(error).strip() or "no message").splitlines()[0]
        text = f"the stage '{request['stage']}' failed: {type(error).__name__}: {first}"
        _fail(request, {"error": text, "exit_code": 2, "traceback": traceback.format_exc()})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

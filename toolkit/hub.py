"""Models named by a hub id, `organisation/name`: fetched once into the cache, in a process that may use the network.

Everything else in this package runs offline. Only configuration, safetensors and tokenizer files are asked for, so no
pickle and no code comes along.

    python -m toolkit.hub REQUEST.json
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from toolkit import child
from toolkit.errors import InputError, MissingDependencyError, ToolkitError, missing_extra
from toolkit.storage import write_json

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PATTERNS = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab*", "merges.txt",
             "special_tokens_map.json", "README.md")  # fmt: skip


def is_id(model: str) -> bool:
    """True for `organisation/name` that is no local path."""
    return _ID.fullmatch(model) is not None and not Path(model).exists() and not Path(model).parent.exists()


def fetch(model: str, cache: Path) -> Path:
    """The folder of a hub model, downloaded into `cache` unless it is there already.

    Raises MissingDependencyError without network or access, InputError if the hub has no such model.
    """
    destination = cache / "hub" / model.replace("/", "--")
    if (destination / "config.json").exists():
        return destination
    request = {"model": model, "destination": str(destination)}
    with tempfile.TemporaryDirectory() as work:
        running = child.Child("toolkit.hub", request, Path(work), environ={"HF_HUB_OFFLINE": "0"})
        try:
            while not running.poll(0.2):
                pass
        except BaseException:
            running.kill()
            raise
        running.result()
    return destination


def _download(request: dict[str, Any]) -> None:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError as error:
        raise missing_extra("huggingface_hub", "convert", "Fetching a model by its hub id") from error
    from toolkit.storage import publish_folder

    model = str(request["model"])
    try:
        with publish_folder(Path(request["destination"])) as aside:
            snapshot_download(model, local_dir=aside, allow_patterns=list(_PATTERNS))
    except RepositoryNotFoundError as error:
        raise InputError(f"The hub has no public model '{model}', and there is no such folder either.") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise MissingDependencyError(
            f"'{model}' is no local folder, and it could not be fetched from the hub: {str(error).splitlines()[0]} "
            "Without a network, give the folder of a local copy."
        ) from error


def main(request_file: str) -> int:
    """Download what `request_file` names; 0 on success, 1 with an `error` in the result file."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    child.die_with_parent(int(request["parent"]))
    result = Path(request["result"])
    try:
        _download(request)
    except ToolkitError as error:
        write_json(result, {"error": str(error), "exit_code": error.exit_code})
        return 1
    write_json(result, {"pid": os.getpid()})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

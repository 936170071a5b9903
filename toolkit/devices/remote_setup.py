"""On a device behind ssh: whether a Python has what a bundle needs, and one that is given it by wheels.

    python -m toolkit.devices.remote_setup check BUNDLE
    python -m toolkit.devices.remote_setup install WHEELS FOLDER

`check` does what the first use of the bundle does up to the engine, and prints what is missing. `install` makes a
virtual environment and unpacks wheels into it: neither pip nor `ensurepip` has to be there, which Debian's Python
lacks. Prints JSON. Standard library only, but for what `check` tries.
"""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
import zipfile
from pathlib import Path

from toolkit.errors import MissingDependencyError
from toolkit.storage import write_json

_MADE = "made-from.json"


def check(bundle: Path) -> str | None:
    """What this Python lacks to run a bundle; None if nothing. What else may be wrong is left to the run."""
    try:
        from toolkit import engines
        from toolkit.bench import measure  # noqa: F401 - compiled here, not in the first start that is timed
        from toolkit.runtime import manifest as manifests
        from toolkit.runtime import unloaded

        manifest = manifests.read(bundle)
        module = engines.get(manifest.engine)
        package = getattr(module, "distribution", lambda: manifest.engine)()
        manifests.check_engine_version(manifest, package, module.version())
        golden = manifest.path("golden/examples.json")
        pipeline = unloaded(manifest)
        pipeline.encoder(pipeline.read(json.loads(golden.read_text(encoding="utf-8"))[0]["input"], golden.parent))
    except (ImportError, MissingDependencyError) as error:
        return str(error)
    return None


def install(wheels: Path, folder: Path) -> Path:
    """A virtual environment of this Python with all wheels of a folder, made unless it is there; its Python."""
    import venv

    names = sorted(path.name for path in wheels.glob("*.whl"))
    made_from = {"wheels": names, "python": sys.version}
    python = folder / "bin" / "python"
    if (folder / _MADE).is_file() and json.loads((folder / _MADE).read_text(encoding="utf-8")) == made_from:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, symlinks=True, with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    for name in names:
        _unpack(wheels / name, site)
    write_json(folder / _MADE, made_from)
    return python


def _unpack(wheel: Path, site: Path) -> None:
    """What a wheel puts beside the library; its scripts and headers are not needed."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for data in site.glob("*.data"):
        for part in ("purelib", "platlib"):
            if (data / part).is_dir():
                shutil.copytree(data / part, site, dirs_exist_ok=True)
        shutil.rmtree(data)


def main(what: str, *paths: str) -> None:
    """Print what `check` or `install` gives, or how the latter failed."""
    given = [Path(path) for path in paths]
    try:
        answer = {"missing": check(*given)} if what == "check" else {"python": str(install(*given))}
    except (OSError, ImportError, zipfile.BadZipFile) as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])

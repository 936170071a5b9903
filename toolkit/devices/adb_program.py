"""What is brought to a device without Python: a program for its processor, and the library of the runtime."""

from __future__ import annotations

import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from toolkit.cache import open_cache
from toolkit.devices import Settings, native_runner
from toolkit.devices.adb_facts import Facts
from toolkit.errors import InputError, MissingDependencyError
from toolkit.storage import publish_folder, sha256_file, sha256_json

NATIVE, BENCHMARK_MODEL = "native_runner", "benchmark_model"
_MARK = b"the step is start, times or answers"  # what native_runner says, and no other program
_GLIBC = b"GLIBC_2."
_MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64"}
_COMPILERS = {
    "aarch64": native_runner.COMPILER, "x86_64": "x86_64-linux-gnu-g++", "i686": "i686-linux-gnu-g++",
    "armv7l": "arm-linux-gnueabihf-g++",
}  # fmt: skip
_NDK = {"aarch64": "aarch64-linux-android26", "x86_64": "x86_64-linux-android26", "i686": "i686-linux-android26",
        "armv7l": "armv7a-linux-androideabi26"}  # fmt: skip
_NAMES = {"onnxruntime": "libonnxruntime.so", "litert": "libLiteRt.so"}
_TITLES = {"onnxruntime": "ONNX Runtime", "litert": "LiteRT"}
_ARCHIVES = (".aar", ".whl", ".zip")


def machine_of(content: bytes) -> str | None:
    """The processor that a program or a library is made for, None if it is neither."""
    if len(content) < 20 or content[:4] != b"\x7fELF":
        return None
    number = struct.unpack("<H" if content[5] == 1 else ">H", content[18:20])[0]
    return _MACHINES.get(number, f"the processor {number}")


def check_options(settings: Settings) -> None:
    """Raise InputError for files that are not there."""
    for option, path in (("--runner", settings.runner), ("--library", settings.library)):
        if path is not None and not path.exists():
            raise InputError(f"{option} {path}: there is no such file.")
    if settings.runner is not None and settings.compiler is not None:
        raise InputError("--runner is a program that is built already; leave --compiler out.")


def kind_of(settings: Settings) -> str:
    """Which program runs there: a user's own is taken for benchmark_model unless it is one of native_runner."""
    if settings.runner is None:
        return NATIVE
    return NATIVE if _MARK in settings.runner.read_bytes() else BENCHMARK_MODEL


def program(settings: Settings, facts: Facts, name: str) -> Path:
    """The program for a device: the user's, or native_runner, built once. Raises InputError for one for another
    processor, MissingDependencyError where it cannot be built."""
    if settings.runner is not None:
        _check_machine(settings.runner.read_bytes(), facts, f"--runner {settings.runner}", name)
        return settings.runner
    compiler = settings.compiler
    if compiler is None and facts.android:
        ndk = _NDK.get(facts.architecture, facts.architecture)
        raise MissingDependencyError(
            f"{name} is an Android, for which programs are built by its NDK. Name the compiler by --compiler "
            f"…/toolchains/llvm/prebuilt/linux-x86_64/bin/{ndk}-clang++, or a program by --runner."
        )
    compiler = compiler or _COMPILERS.get(facts.architecture)
    if compiler is None:
        raise MissingDependencyError(f"{name} has the processor {facts.architecture}; name a compiler by --compiler.")
    built = _built(settings.cache, compiler)
    _check_machine(built.read_bytes(), facts, f"what {compiler} builds", name)
    return built


def _built(cache: Path, compiler: str) -> Path:
    sources = {path.name: sha256_file(path) for path in sorted(native_runner.SOURCES.iterdir()) if path.is_file()}
    found = shutil.which(compiler)
    stamp = Path(found).resolve().stat().st_mtime_ns if found else 0  # another version under the same name
    folder = cache / "devices" / f"native-{sha256_json([compiler, found, stamp, sources])[:16]}"
    with open_cache(cache).lock(folder.name):
        if not (folder / NATIVE).is_file():
            with publish_folder(folder) as aside:
                native_runner.build(aside / NATIVE, compiler)
    return folder / NATIVE


def library(settings: Settings, engine: str, facts: Facts, name: str, folder: Path) -> Path:
    """The runtime's library for a device; one out of an archive is unpacked into `folder`. Raises InputError for a file
    or folder that holds none, MissingDependencyError if none is named."""
    given = settings.library
    kind = f"{_TITLES[engine]}'s library for {facts.abi if facts.android else facts.architecture}"
    if given is None:
        source = "the archive of it for Android (.aar)" if facts.android else "its wheel for that processor (.whl)"
        raise MissingDependencyError(
            f"{name} needs {kind}. Name {source}, a folder of such, or {_NAMES[engine]} itself by --library."
        )
    for found in _candidates(given, _NAMES[engine], folder):
        content = found.read_bytes()
        if given.is_file() and given.suffix not in _ARCHIVES:
            _check_machine(content, facts, f"--library {given}", name)
        if machine_of(content) != facts.architecture:
            continue
        if facts.android and _GLIBC in content:
            raise InputError(
                f"--library {given} is built for Linux with glibc, and {name} is an Android: name {_TITLES[engine]}'s "
                "archive for Android."
            )
        return found
    raise InputError(f"--library {given} holds no {_NAMES[engine]} for {facts.architecture}.")


def _candidates(given: Path, name: str, folder: Path) -> Iterator[Path]:
    """The files that may be the library: the one that is named, those of an archive, those below a folder."""
    if given.is_dir():
        paths = [path for path in sorted(given.rglob("*")) if path.is_file()]
        yield from (path for path in paths if path.name.startswith(name))
        archives = [path for path in paths if path.suffix in _ARCHIVES]
    elif given.suffix in _ARCHIVES:
        archives = [given]
    else:
        yield given
        return
    for archive in archives:
        try:
            with zipfile.ZipFile(archive) as opened:
                for entry in opened.namelist():
                    if Path(entry).name.startswith(name):
                        with tempfile.TemporaryDirectory(dir=folder) as aside:
                            found = Path(opened.extract(entry, aside))
                            target = folder / found.name
                            found.replace(target)
                        yield target
        except zipfile.BadZipFile as error:
            raise InputError(f"--library {archive} is no archive that can be read.") from error


def _check_machine(content: bytes, facts: Facts, what: str, name: str) -> None:
    machine = machine_of(content)
    if machine is None and content[:2] != b"#!":
        raise InputError(f"{what} is no program or library for Linux.")
    if machine is not None and machine != facts.architecture:
        raise InputError(f"{what} is for {machine}, and {name} has {facts.architecture}.")

"""Switches that keep the libraries underneath silent, set before any of them is imported.

onnxruntime looks up an upload host from any process that keeps it loaded for about 45 s, and only the
environment variable read at import stops it; Hugging Face libraries ask their hub for updates of a model
that already lies on disk. Nothing here needs the network, so all of it is switched off. Children inherit
the environment, so one call covers every stage and every benchmark process.

OpenVINO reports that it is imported, and every conversion, through a package of its own, unless a file in the home
folder or a variable of some CI server says otherwise. It does without the package, so that is as good as not installed
in every process that imports the toolkit before OpenVINO.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

# Telemetry is never wanted: these override whatever the environment says.
TELEMETRY_OFF = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "NNCF_CI": "1",
}

# Packages that do nothing but report, and that others do without.
REPORTERS = ("openvino_telemetry",)

# Defaults that a user may override: offline, and quiet.
OFFLINE_AND_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "DATASETS_VERBOSITY": "critical",  # what it cannot read is raised, too
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_PLATFORMS": "cpu",
}


def apply(environ: MutableMapping[str, str] | None = None) -> None:
    """Write the switches into `environ`; without one into this process's environment, and hide `REPORTERS` from it."""
    if environ is None:
        environ = os.environ
        for name in REPORTERS:
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None: the import fails
    environ.update(TELEMETRY_OFF)
    for name, value in OFFLINE_AND_QUIET.items():
        environ.setdefault(name, value)

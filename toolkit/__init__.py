"""Edge deployment toolkit: from a model on a workstation to a bundle that answers on the device.

Importing this package is cheap: it sets the switches that keep the libraries underneath from phoning home
(`toolkit.silence`) and nothing else. The public functions are resolved on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolkit import silence

silence.apply()

__version__ = "0.1.0"

if TYPE_CHECKING:
    from toolkit.conversion import convert as convert
    from toolkit.runtime import load as load

_PUBLIC = {"convert": "toolkit.conversion", "load": "toolkit.runtime"}

__all__ = ["__version__", "convert", "load"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)

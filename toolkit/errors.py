"""The errors a user can meet. Each carries its exit code; the command line prints the message, no traceback."""

from __future__ import annotations

from typing import Any


class ToolkitError(Exception):
    """Base of every error that is told to the user as one message."""

    exit_code = 2


class InputError(ToolkitError):
    """The user's input cannot be used: what, where, and what to do (exit code 2)."""


class RefusedError(ToolkitError):
    """A gate or a budget refused the result (exit code 1). `bundle` is what was kept of it, if anything."""

    exit_code = 1

    def __init__(self, message: str, bundle: Any = None) -> None:
        super().__init__(message)
        self.bundle = bundle


class MissingDependencyError(ToolkitError):
    """Something is missing in the environment: an extra, a device, a tool (exit code 3)."""

    exit_code = 3


class StoppedError(ToolkitError):
    """Something failed on its way, and what it had reached was kept; the exit code is that of what failed."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def missing_extra(package: str, extra: str, purpose: str) -> MissingDependencyError:
    """The one line that tells which extra to install for `package`."""
    return MissingDependencyError(
        f"{purpose} needs the package '{package}', which is not installed. "
        f"Install it with: pip install 'edge-deployment-toolkit[{extra}]'"
    )

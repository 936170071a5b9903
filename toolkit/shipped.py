"""Where the data that the toolkit ships lies: hardware profiles and the tables that they refer to."""

from __future__ import annotations

from pathlib import Path


def targets_folder() -> Path:
    """The folder `targets`: inside the installed package, or beside it in a source checkout."""
    here = Path(__file__).parent
    # `toolkit/target/` is the code; `toolkit/targets/` is there only in an installed package.
    return here / "targets" if (here / "targets").is_dir() else here.parent / "targets"

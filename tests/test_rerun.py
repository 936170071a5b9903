"""A bundle's recipe is complete: rerun on the same inputs it gives the same bundle, on others it is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import toolkit
from toolkit.errors import InputError


def test_recipe_of_a_bundle_gives_the_same_bundle(converted: Any, tmp_path: Path) -> None:
    again = toolkit.convert("", recipe=str(converted.path / "recipe.yaml"), output=str(tmp_path / "again"))
    assert again.manifest["content_hash"] == converted.manifest["content_hash"]
    assert (again.path / "recipe.yaml").read_bytes() == (converted.path / "recipe.yaml").read_bytes()


def test_recipe_is_refused_on_other_data(converted: Any, reviews: Path, tmp_path: Path) -> None:
    other = tmp_path / "reviews.csv"
    shutil.copy(reviews, other)
    with other.open("a", encoding="utf-8") as stream:
        stream.write("one more,positive\n")
    recipe = yaml.safe_load((converted.path / "recipe.yaml").read_text())
    recipe["prepare"]["data"] = str(other)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(InputError, match="is not what the recipe was made for"):
        toolkit.convert("", recipe=str(tmp_path / "recipe.yaml"), output=str(tmp_path / "again"))

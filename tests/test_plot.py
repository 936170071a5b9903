"""Plots: well-formed SVG with every dot where its numbers put it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from toolkit.plot import Dot, scatter

SVG = "{http://www.w3.org/2000/svg}"


def circles(svg: str) -> list[tuple[float, float, str]]:
    found = ElementTree.fromstring(svg).iter(f"{SVG}circle")
    return [(float(each.get("cx", 0)), float(each.get("cy", 0)), each.get("class", "")) for each in found]


def test_faster_is_left_and_better_is_up() -> None:
    dots = [Dot("big", 10, 0.9), Dot("small", 1, 0.88), Dot("bad <one>", 2, 0.5, main=False)]
    svg = scatter(dots, "milliseconds", "accuracy", floor=0.87)
    big, small, bad = circles(svg)
    assert small[0] < bad[0] < big[0]
    assert big[1] < small[1] < bad[1]  # y grows downwards
    assert (big[2], bad[2]) == ("main", "other")
    assert "bad &lt;one&gt;" in svg


def test_ratios_are_equal_distances() -> None:
    one, ten, hundred = circles(scatter([Dot("", x, 0.5) for x in (1, 10, 100)], "x", "y"))
    assert ten[0] - one[0] == pytest.approx(hundred[0] - ten[0], abs=0.2)


@pytest.mark.parametrize("range_of_x", [(1.2, 2.9), (0.5, 90), (3, 3)])
def test_the_logarithmic_axis_has_at_least_three_numbers(range_of_x: tuple[float, float]) -> None:
    svg = scatter([Dot("", x, 0.5) for x in range_of_x], "x", "y")
    labels = [
        each.text for each in ElementTree.fromstring(svg).iter(f"{SVG}text") if each.get("text-anchor") == "middle"
    ]
    assert len(labels) >= 3


def test_a_single_dot_is_drawn() -> None:
    assert len(circles(scatter([Dot("only", 3, 0.5)], "x", "y"))) == 1


@pytest.mark.parametrize("dots", [[], [Dot("never", 0, 1)]])
def test_what_cannot_be_drawn_is_refused(dots: list[Dot]) -> None:
    with pytest.raises(ValueError, match="at least one dot"):
        scatter(dots, "x", "y")

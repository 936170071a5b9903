"""How large the same plots are, drawn by several libraries: what `toolkit report` draws with was chosen by it.

    pip install matplotlib altair vl-convert-python plotly bokeh pygal
    python benchmarks/plot_sizes.py

Plots that a report has: the distribution of two latencies (2 x 101 points), and the latency and the temperature of a
sustained run of half an hour (2 x 360 points each). Prints kB as they stand in a page, what the page needs once
besides, and the seconds from the import to the last plot, each library in a process of its own. Those that are not
installed are left out.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from typing import Any

import numpy as np

LIBRARIES = ("matplotlib", "altair", "plotly", "bokeh", "pygal")


def data() -> list[tuple[str, list[tuple[str, Any, Any]]]]:
    """(title, curves of (name, x, y))."""
    draw = np.random.default_rng(0)
    quantiles = [np.sort(scale * draw.lognormal(0, 0.2, 101)) for scale in (2.9, 9.8)]
    at = np.arange(360) / 12
    heat = 1 - np.exp(-at / 6)
    return [
        ("distribution", [(f"device {n}", each, np.arange(101)) for n, each in enumerate(quantiles)]),
        ("latency", [(name, at, base * (1 + 0.2 * heat) + draw.normal(0, 0.05, 360)) for name, base in
                     (("p50", 9.6), ("p99", 13.0))]),
        ("temperature", [(name, at, 45 + rise * heat + draw.normal(0, 0.3, 360)) for name, rise in
                         (("cpu", 38), ("gpu", 27))]),
    ]  # fmt: skip


def with_matplotlib() -> tuple[list[str], str]:
    """As reports draw."""
    from toolkit.reports import charts

    return [
        charts.curves(title, [charts.Curve(name, list(x), list(y)) for name, x, y in curves], ("", title), 720,
                      marks=False, from_zero=False)
        for title, curves in data()
    ], ""  # fmt: skip


def with_altair() -> tuple[list[str], str]:
    """SVG by vl-convert."""
    import altair
    import vl_convert

    made = []
    for _, curves in data():
        rows = [
            {"x": float(a), "y": float(b), "name": name} for name, x, y in curves for a, b in zip(x, y, strict=True)
        ]
        chart = altair.Chart(altair.Data(values=rows)).mark_line().properties(width=640, height=220)
        spec = chart.encode(x="x:Q", y=altair.Y("y:Q").scale(zero=False), color="name:N", strokeDash="name:N")
        made.append(vl_convert.vegalite_to_svg(spec.to_json()))
    return made, ""


def with_plotly() -> tuple[list[str], str]:
    """Its script draws in the browser."""
    from plotly import graph_objects
    from plotly.offline import get_plotlyjs

    made = []
    for _, curves in data():
        figure = graph_objects.Figure([graph_objects.Scatter(x=x, y=y, name=name) for name, x, y in curves])
        made.append(figure.to_html(full_html=False, include_plotlyjs=False))
    return made, str(get_plotlyjs())


def with_bokeh() -> tuple[list[str], str]:
    """Its script draws in the browser."""
    from bokeh.embed import components
    from bokeh.plotting import figure
    from bokeh.resources import INLINE

    made = []
    for _, curves in data():
        plot = figure(width=720, height=270)
        for name, x, y in curves:
            plot.line(x, y, legend_label=name)
        made.append("".join(components(plot)))
    return made, "".join(INLINE.js_raw)


def with_pygal() -> tuple[list[str], str]:
    """SVG; its script for tooltips is left out."""
    import pygal

    made = []
    for _, curves in data():
        plot = pygal.XY(js=[], width=720, height=270, show_dots=False)
        for name, x, y in curves:
            plot.add(name, list(zip(map(float, x), map(float, y), strict=True)))
        made.append(plot.render().decode())
    return made, ""


def main() -> None:
    """Each library in a process of its own."""
    if len(sys.argv) > 1:
        began = time.perf_counter()
        plots, once = globals()[f"with_{sys.argv[1]}"]()
        seconds = time.perf_counter() - began
        print(json.dumps([[len(each.encode()) for each in plots], len(once.encode()), round(seconds, 2)]))
        return
    print(f"{'':12}{'plots, kB':>24}{'once a page, kB':>18}{'seconds':>10}")
    for name in LIBRARIES:
        if importlib.util.find_spec(name) is None:
            continue
        done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
        sizes, once, seconds = json.loads(done.stdout)
        print(f"{name:12}{'  '.join(f'{size / 1e3:.0f}' for size in sizes):>24}{once / 1e3:18.0f}{seconds:10.2f}")


if __name__ == "__main__":
    main()

"""The kinds of plots that sections use. Each takes its data and a width in pixels and gives an SVG element."""

from toolkit.reports.charts.bars import Bar, bars
from toolkit.reports.charts.icicle import Node, icicle
from toolkit.reports.charts.lines import Curve, curves, distributions
from toolkit.reports.charts.ratios import Interval, ratios
from toolkit.reports.charts.scatter import Bubble, Limits, bubbles
from toolkit.reports.charts.strips import Strip, strips
from toolkit.reports.charts.waterfall import Panel, Step, waterfall

__all__ = [
    "Bar", "Bubble", "Curve", "Interval", "Limits", "Node", "Panel", "Step", "Strip", "bars", "bubbles", "curves",
    "distributions", "icicle", "ratios", "strips", "waterfall",
]  # fmt: skip

"""Pictures as SVG text by matplotlib, that follow the page: its colours, light or dark, and its font.

Matplotlib draws with colours that stand for a role each; in the SVG they become variables of the page's style sheet.
Text stays text. A picture has no script, and its names are no other picture's.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from html import escape
from typing import Any

from toolkit.errors import missing_extra

# Role → (the colour that matplotlib draws with, on a light page, on a dark page). The first five series
# stay apart for the three kinds of colour blindness; lines and marks differ in shape besides.
ROLES: Mapping[str, tuple[str, str, str]] = {
    "ink": ("#010101", "#1c1f24", "#e6e8eb"),
    "muted": ("#020202", "#5b626b", "#a3aab3"),
    "line": ("#030303", "#8b929b", "#7d848d"),
    "grid": ("#040404", "#dfe2e6", "#343940"),
    "surface": ("#050505", "#ffffff", "#1b1e23"),
    "better": ("#060606", "#0067a8", "#66b8f0"),
    "worse": ("#070707", "#b34700", "#ff9a5c"),
    "series1": ("#080808", "#0067a8", "#66b8f0"),
    "series2": ("#090909", "#c44e00", "#f08c3c"),
    "series3": ("#0a0a0a", "#26282c", "#f4f4f4"),
    "series4": ("#0b0b0b", "#8b5cf0", "#a855f7"),
    "series5": ("#0c0c0c", "#8f8078", "#8f8580"),
    "series6": ("#0d0d0d", "#00755a", "#d8e05a"),
}
SERIES = tuple(name for name in ROLES if name.startswith("series"))
MARKS = ("o", "s", "^", "D", "v", "P")
MARK_NAMES = ("circles", "squares", "triangles", "diamonds", "triangles that point down", "crosses")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (9, 3)), (0, (3, 1, 1, 1, 1, 1)))
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "toolkit",
    "text.parse_math": False,  # a name with dollar signs is a name
    "font.family": "DejaVu Sans",  # it comes with matplotlib, and is wider than what pages are shown in
    "font.size": 10.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify_threshold": 0.3,
    "hatch.linewidth": 0.6,
}


def role(name: str) -> str:
    """What matplotlib is to draw a role with."""
    return ROLES[name][0]


def series(place: int) -> str:
    """The colour of the n-th series; after the last one they begin again, with other marks beside them."""
    return role(SERIES[place % len(SERIES)])


@cache
def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.backends.backend_svg
        import matplotlib.figure
    except ImportError as error:
        raise missing_extra("matplotlib", "report", "Drawing a report") from error
    return matplotlib


def require() -> None:
    """Raises MissingDependencyError where pictures cannot be drawn."""
    _matplotlib()


class Picture:
    """A matplotlib figure of a size in pixels, and what its parts are called when they are pointed at."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = _matplotlib().figure.Figure(figsize=(width / 72, height / 72), dpi=72)
        self.figure.patch.set_alpha(0)
        self._titles: list[str] = []

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes at a place in pixels from the upper left corner."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        made = self.figure.add_axes(box)
        made.set_facecolor("none")
        made.tick_params(colors=role("muted"), length=3, width=0.8, labelsize=10)
        for spine in made.spines.values():
            spine.set_color(role("line"))
        for name in (made.xaxis, made.yaxis):
            name.label.set_color(role("ink"))
        return made

    def titled(self, artist: Any, title: str) -> None:
        """What is told of a part when it is pointed at."""
        artist.set_gid(f"titled-{len(self._titles)}")
        self._titles.append(title)

    def svg(self, name: str, *, halo: bool = True) -> str:
        """The picture as an element of a page. `name` says what it shows; with `halo`, text stands clear of lines."""
        stream = io.StringIO()
        canvas = _matplotlib().backends.backend_svg.FigureCanvasSVG(self.figure)
        with warnings.catch_warnings():  # letters that its font lacks are in the page's
            warnings.filterwarnings("ignore", message="Glyph")
            canvas.print_svg(stream, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        return _for_a_page(stream.getvalue(), name, self._titles, "halo" if halo else "plain")


@contextlib.contextmanager
def picture(width: float, height: float) -> Iterator[Picture]:
    """A picture to draw in, with this module's settings for the time of the block."""
    with _matplotlib().rc_context(_SETTINGS):
        yield Picture(width, height)


def grid(axes: Any, axis: str = "both") -> None:
    """Thin lines behind everything."""
    axes.grid(True, axis=axis, color=role("grid"), linewidth=0.8)
    axes.set_axisbelow(True)


def _for_a_page(text: str, name: str, titles: Sequence[str], kind: str) -> str:
    """What matplotlib wrote, without what only a file needs, and with the page's colours and font."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', text)
    assert view is not None  # noqa: S101 - matplotlib always writes one
    head = f'<svg class="{kind}" viewBox="{view[1]}" role="img" aria-label="{escape(name, quote=True)}">'
    text = head + text[text.index(">", text.index("<svg")) + 1 :]
    for color, _, _ in ROLES.values():
        text = text.replace(color, f"var(--{_NAME_OF[color]})")
    text = re.sub(r"; font-family: [^;\"]*|font-family: [^;\"]*; ?", "", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = text.replace("'DejaVu Sans'", "inherit")
    for place, title in enumerate(titles):
        text = text.replace(f'<g id="titled-{place}">', f"<g><title>{escape(title)}</title>")
    text = re.sub(r' (d|x|y|transform)="[^"]*"', lambda found: _DIGITS.sub(r"\1", found[0]), text)
    text = re.sub(r" transform=\"rotate\(-0 [^\"]*\)\"| ?\n\s*(?=[A-Zz\"])", "", text)
    text = re.sub(r"<defs>\s*</defs>", "", text)
    return re.sub(r"\n\s*", "", text)


_DIGITS = re.compile(r"(\d\.\d\d)\d+")  # of a hundredth of a pixel nothing is seen
_NAME_OF = {drawn: name for name, (drawn, _, _) in ROLES.items()}


def renamed(text: str, prefix: str) -> str:
    """A picture whose names begin with `prefix`, so that several can stand on one page. Names that nothing refers to
    are left out."""
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))

    def name(found: re.Match[str]) -> str:
        return f' id="{prefix}{found[1]}"' if found[1] in used else ""

    text = re.sub(r' id="([^"]+)"', name, text)
    return re.sub(r'(url\(#|href="#)([^")]+)', lambda found: f"{found[1]}{prefix}{found[2]}", text)

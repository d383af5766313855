"""Building blocks of the pages that show runs: one file each, without scripts or requests."""

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from genjax.training.pictures import needs_logarithm, read_rows

STYLE = """
:root {
  color-scheme: light dark;
  --paper: light-dark(#fcfcfa, #15171a); --raised: light-dark(#ffffff, #1c1f23);
  --ink: light-dark(#1d2023, #e6e5e1); --muted: light-dark(#5d6369, #9aa1a8);
  --line: light-dark(#e2e2dc, #30343a); --mark: light-dark(#e3f1e4, #1f3a28);
  --c0: light-dark(#1763b6, #6cb2ff); --c1: light-dark(#bd4a0a, #ff9f6b);
  --c2: light-dark(#16793c, #62d28e); --c3: light-dark(#8440b8, #c9a0ff);
  --c4: light-dark(#8f6a00, #e4c04d); --c5: light-dark(#0c7489, #5ccfe3);
  --c6: light-dark(#b51d5c, #ff8dc0); --c7: light-dark(#55585c, #b9bcc0);
}
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  -webkit-text-size-adjust: 100% }
header, main, footer { max-width: 72rem; margin: auto; padding: 0 clamp(1rem, 4vw, 2.5rem) }
header { padding-top: clamp(1.5rem, 5vw, 3.5rem) }
footer { padding-top: 3rem; padding-bottom: 3rem; color: var(--muted); font-size: .85rem }
h1 { margin: 0; font-size: clamp(1.8rem, 6vw, 2.8rem); line-height: 1.1; letter-spacing: -.022em;
  overflow-wrap: anywhere; text-wrap: balance }
h2 { margin: 3rem 0 1.2rem; padding-top: 1.1rem; border-top: 1px solid var(--line);
  font-size: 1.25rem; letter-spacing: -.01em }
p { max-width: 42rem }
.lead, .note, figcaption span, .unit { color: var(--muted) }
.lead { margin: .4rem 0 0 }
.facts { display: flex; flex-wrap: wrap; gap: .8rem 2.5rem; margin: 1.6rem 0 0 }
.facts dt, th, caption { color: var(--muted); font-size: .8rem; font-weight: 500 }
.facts dd { margin: 0; font-size: 1.1rem; font-variant-numeric: tabular-nums }
.row { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)) }
.pair { grid-template-columns: repeat(auto-fill, minmax(min(100%, 29rem), 1fr)) }
.strip { grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)) }
figure { margin: 0; min-width: 0 }
figcaption { font-size: .9rem; font-weight: 600; margin-bottom: .4rem; overflow-wrap: anywhere }
figcaption span { font-weight: 400; margin-left: .4em; font-variant-numeric: tabular-nums }
audio, video { display: block; width: 100%; border-radius: 4px }
img { display: block; max-width: 100%; height: auto; border-radius: 4px }
.scroll { overflow-x: auto; margin: 0 0 2rem }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
caption { text-align: left; padding-bottom: .5rem }
th, td { padding: .4rem 1.4rem .4rem 0; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--line) }
td { overflow-wrap: anywhere; min-width: 5.5rem }
tbody th { color: var(--ink); font-size: inherit }
.tables { display: flex; flex-wrap: wrap; gap: 0 4rem }
.figures td { padding: .4rem .8rem; text-align: right; white-space: nowrap; overflow-wrap: normal }
.figures thead th:not(:first-child) { padding: .4rem .8rem; text-align: right }
.figures tbody th { min-width: 9.5rem }
@media (max-width: 30rem) {
  th, td { padding-right: .5rem }
  td { min-width: 4.8rem }
  .figures td, .figures thead th:not(:first-child) {
    padding: .4rem 0 .4rem .7rem; min-width: 4.5rem }
  .figures tbody th { min-width: 6.5rem; padding-right: .5rem }
}
.unit { display: block; font-size: .8rem; font-weight: 400 }
.best { background: var(--mark); font-weight: 650 }
.best .unit { color: var(--ink) }
.note { border-left: 3px solid var(--c4); padding-left: .9rem }
@media (min-width: 48rem) { .legend { position: sticky; top: 0; z-index: 1 } }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; margin: 0 0 1rem;
  padding: .6rem 0; list-style: none; background: var(--paper); font-size: .9rem;
  overflow-wrap: anywhere }
.legend svg { width: 2rem; height: .7rem; margin-right: .5rem; vertical-align: middle }
.key { display: flex; flex-wrap: wrap; gap: .1rem .9rem; margin: .3rem 0 0; padding: 0;
  list-style: none; color: var(--muted); font-size: .8rem; overflow-wrap: anywhere }
.key svg { width: 1.2rem; height: .5rem; margin-right: .3rem; vertical-align: middle }
details { margin: 2rem 0 0; border-top: 1px solid var(--line); padding-top: 1rem }
summary { cursor: pointer; font-weight: 600 }
details[open] summary { margin-bottom: 1.2rem }
.chart { display: block; width: 100%; height: auto; background: var(--raised);
  border: 1px solid var(--line);
  border-radius: 6px }
.chart text { fill: var(--muted); font-size: 12px; font-variant-numeric: tabular-nums }
.grid { stroke: var(--line) }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round }
""" + "".join(
    f".s{i} {{ stroke: var(--c{i}) }} circle.s{i} {{ fill: var(--c{i}) }}\n" for i in range(8)
)


PLAYED = {".wav": "audio/wav", ".mp4": "video/mp4", ".webm": "video/webm"}  # by suffix


class Html(str):
    """Text that is markup already; other text is escaped on its way into a page."""


def element(name: str, /, *children: Any, **attributes: Any) -> Html:
    """Return `<name attributes>children</name>`.

    `class_` stands for `class`, and `aria_label` for `aria-label`.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
    )
    inner = "".join(child if isinstance(child, Html) else escape(show(child)) for child in children)
    is_void = name in ("img", "meta", "link")
    return Html(f"<{name}{given}>" if is_void else f"<{name}{given}>{inner}</{name}>")


def show(value: Any) -> str:
    """Return a value in a reader's form.

    Floats have four digits, lists no brackets, and booleans are yes and no.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(show, value))
    return "none" if value is None else str(value)


def breakable(value: Any) -> Html:
    """Return a value whose lines may end after underscores, and after points between words."""
    return Html(re.sub(r"(?<=[_.])(?=[A-Za-z])", "<wbr>", escape(show(value))))


def printed(value: float) -> float:
    """Return a number as a reader of the page sees it: `show` rounds floats."""
    return float(show(value).replace(",", ""))


def page(title: str, header: Sequence[Html], body: Sequence[Html]) -> str:
    """Return a whole document.

    Its content policy forbids the browser every request, so that the page cannot come to need one.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'",
        ),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    content = element("header", *header) + element("main", *body)
    document = element("html", head, element("body", Html(content)), lang="en")
    return f"<!DOCTYPE html>\n{document}\n"


def section(title: str, *children: Html) -> Html:
    """Return a heading and what stands below it; nothing if nothing does."""
    return element("section", element("h2", title), *children) if any(children) else Html()


def box(class_: str, *children: Html) -> Html:
    """Return children laid out by a class of `STYLE`; nothing if there are none."""
    return element("div", *children, class_=class_) if any(children) else Html()


def fold(summary: str, *children: Html) -> Html:
    """Return children that a click on their summary shows; nothing if there are none."""
    return element("details", element("summary", summary), *children) if any(children) else Html()


def facts(pairs: Mapping[str, Any]) -> Html:
    """Return a few values with their names above them."""
    pair = lambda name, value: element("div", element("dt", name), element("dd", value))
    return element("dl", *(pair(*each) for each in pairs.items()), class_="facts")


def table(
    caption: str, header: Sequence[str], rows: Iterable[Sequence[Any]], class_: str = ""
) -> Html:
    """Return rows whose first entries are their headings; nothing if there are no rows.

    An entry may be a cell made by `element`.
    """
    rows = list(rows)
    if not rows:
        return Html()
    cell = lambda value, make: value if isinstance(value, Html) else make(value)
    column = lambda value: element("th", breakable(value), scope="col")
    row = lambda value: element("th", breakable(value), scope="row")
    entry = lambda value: element("td", value)
    heads = [column(name) if name else element("td") for name in header]
    lines = [
        element("tr", cell(first, row), *(cell(value, entry) for value in rest))
        for first, *rest in rows
    ]
    content = element(
        "table",
        element("caption", caption),
        *([element("thead", element("tr", *heads))] if heads else []),
        element("tbody", *lines),
        class_=class_,
    )
    return element("div", content, class_="scroll", role="region", tabindex="0", aria_label=caption)


def picture_rows(path: Path) -> list[str]:
    """Return the labels of the rows of an image file; none if it is absent or was cut short."""
    try:
        with Image.open(path) as image:
            return read_rows(image)
    except OSError:
        return []


def picture(path: Path, caption: str, alt: str, detail: str = "") -> Html:
    """Return an image file inside a figure; nothing if the file is absent or was cut short.

    The labels of the picture's rows, if it has any, become part of the alternative text.
    """
    try:
        with Image.open(path) as image:
            image.load()
            width, height, kind = *image.size, image.get_format_mimetype()
            rows = read_rows(image)
    except OSError:
        return Html()
    source = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    text = f"{alt}. Rows: {'; '.join(rows)}" if rows else alt
    return element(
        "figure",
        element("figcaption", breakable(caption), element("span", detail)),
        element("img", src=source, alt=text, width=width, height=height),
    )


def player(path: Path, caption: str, detail: str = "") -> Html:
    """Return a file of sound or of a clip with its controls; nothing if the file is absent."""
    if not path.exists():
        return Html()
    kind = PLAYED[path.suffix]
    source = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    playing = element(kind.partition("/")[0], controls="", src=source, aria_label=caption)
    return element("figure", element("figcaption", caption, element("span", detail)), playing)


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return at most `count` + 1 round numbers between two values."""
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _is_whole(step: float) -> bool:
    return abs(step - round(step)) < 1e-6


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 3 else (1,)
    every = -(-len(decades) // 6)
    return [f * 10.0**n for n in decades[::every] for f in factors if low <= f * 10.0**n <= high]


def _tick_label(value: float) -> str:
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(unit, 1e4):
            return f"{value / unit:g}{letter}"
    if 0 < abs(value) < 1e-3:  # 0.00075 is too wide for the margin of a chart
        digits, exponent = f"{value:.3e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:g}"


def _look(index: int) -> dict[str, str]:
    """Return the look of a series: one of eight colours, and from the ninth series on dashed."""
    dashes = {"stroke_dasharray": f"{9 - 3 * (index // 8 % 3)} 4"} if index >= 8 else {}
    return {"class_": f"curve s{index % 8}", **dashes}


def _thin(points: Sequence[tuple[float, float]], most: int = 1000) -> list[tuple[float, float]]:
    """Return the lowest and the highest point of each stretch of many points.

    A thinned curve keeps its extremes, and one point of each stretch that is not finite.
    """
    stretch = max(1, 2 * len(points) // most)
    if stretch < 3:
        return list(points)
    kept = []
    for start in range(0, len(points), stretch):
        piece = points[start : start + stretch]
        finite = [point for point in piece if math.isfinite(point[1])]
        gaps = [point for point in piece if not math.isfinite(point[1])]
        extremes = {pick(finite, key=lambda p: p[1]) for pick in (min, max) if finite}
        kept += sorted(extremes | set(gaps[:1]))
    return kept


class _Axes(NamedTuple):
    """The box of a chart, in SVG units, and the values at its edges."""

    steps: tuple[float, float]
    values: tuple[float, float]
    logarithmic: bool
    width: int = 400
    height: int = 230
    left: int = 54
    right: int = 18
    top: int = 14
    bottom: int = 30

    @classmethod
    def around(cls, points: Sequence[tuple[float, float]]) -> "_Axes":
        """Leave a margin above and below the points, which are finite."""
        steps, values = sorted(x for x, _ in points), sorted(y for _, y in points)
        logarithmic = needs_logarithm(values)
        low, high = (math.log10(y) if logarithmic else float(y) for y in (values[0], values[-1]))
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        edges = (steps[0], steps[-1]) if steps[-1] > steps[0] else (0, steps[0] or 1)
        axes = cls(edges, (low - margin, high + margin), logarithmic)
        widest = max((len(_tick_label(y)) for y in axes.ticks()), default=0)
        return axes._replace(left=max(axes.left, 10 + round(7.5 * widest)))  # 7 units a letter

    def ticks(self) -> list[float]:
        """Return the values that have a line and a number."""
        low, high = self.values
        return _log_ticks(10**low, 10**high) if self.logarithmic else _ticks(low, high)

    def across(self, step: float) -> float:
        first, last = self.steps
        return self.left + (self.width - self.left - self.right) * (step - first) / (last - first)

    def down(self, value: float) -> float:
        low, high = self.values
        scaled = math.log10(value) if self.logarithmic else float(value)
        return self.top + (self.height - self.top - self.bottom) * (high - scaled) / (high - low)

    def marks(self) -> list[Html]:
        """Draw the grid and the numbers along both axes."""
        marks = []
        for y in self.ticks():
            at, label = self.down(y), _tick_label(y)
            ends = dict(x1=self.left, x2=self.width - self.right, y1=f"{at:.1f}", y2=f"{at:.1f}")
            marks.append(element("line", **ends, class_="grid"))
            marks.append(
                element("text", label, x=self.left - 7, y=f"{at + 4:.1f}", text_anchor="end")
            )
        for x in filter(_is_whole, _ticks(*self.steps)):
            place = dict(x=f"{self.across(x):.1f}", y=self.height - 10, text_anchor="middle")
            marks.append(element("text", _tick_label(x), **place))
        return marks


def _curve(
    axes: _Axes, label: str, points: Sequence[tuple[float, float]], index: int
) -> list[Html]:
    """Draw one series as a path, and as circles that name their values if there are few."""
    path, joined = [], False
    for x, y in _thin(points):
        if math.isfinite(y):
            path.append(f"{'L' if joined else 'M'}{axes.across(x):.1f} {axes.down(y):.1f}")
        joined = math.isfinite(y)
    marks = [element("path", element("title", label), d="".join(path), **_look(index))]
    for x, y in points if len(points) <= 30 else ():
        if math.isfinite(y):
            place = dict(cx=f"{axes.across(x):.1f}", cy=f"{axes.down(y):.1f}")
            title = element("title", f"{label}, step {x}: {show(float(y))}")
            marks.append(element("circle", title, **place, r=2.4, class_=f"s{index % 8}"))
    return marks


def chart(name: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> Html:
    """Draw curves over the steps, as SVG in the page's colours.

    Args:
        series: by label, points (step, value), of which those that are not finite leave a gap.
    """
    finite = [p for points in series.values() for p in points if math.isfinite(p[1])]
    title = name.replace("_", " ")
    if not finite:
        return element("figure", element("figcaption", title, element("span", "no finite values")))
    axes = _Axes.around(finite)
    marks = axes.marks()
    for index, (label, points) in enumerate(series.items()):
        if points:
            marks += _curve(axes, label, points, index)
    ends = "; ".join(
        f"{label} {show(float(points[-1][1]))} at step {points[-1][0]}"
        for label, points in series.items()
        if points
    )
    drawing = element(
        "svg",
        *marks,
        viewBox=f"0 0 {axes.width} {axes.height}",
        role="img",
        aria_label=f"{title} over the steps{', logarithmic' if axes.logarithmic else ''}: {ends}",
        class_="chart",
    )
    latest = show(float(next(iter(series.values()))[-1][1])) if len(series) == 1 else ""
    detail = latest + (" · logarithmic" if axes.logarithmic else "")
    return element(
        "figure", element("figcaption", title, element("span", detail.strip(" ·"))), drawing
    )


def legend(names: Iterable[str], class_: str = "legend") -> Html:
    """Return the colours of `chart`, in the order of its series."""
    items = []
    for index, name in enumerate(names):
        line = element("path", d="M0 5H32", **_look(index))
        drawing = element("svg", line, viewBox="0 0 32 10", aria_hidden="true")
        items.append(element("li", drawing, element("span", name)))
    return element("ul", *items, class_=class_)

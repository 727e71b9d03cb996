"""Bars and histograms as inline SVG, in the colours of the page. The drawing has the width of a phone."""

from collections.abc import Sequence
from typing import NamedTuple

from app.pages.markup import Markup, tag

WIDTH = 360
# A bar has its label above it and its value at its end.
ROW, LABEL, BAR = 34, 12, 12
VALUE_SPACE = 76
HISTOGRAM_HEIGHT, AXIS_SPACE, COUNT_SPACE = 190, 32, 14


class Bar(NamedTuple):
    """One value of a bar chart. `kind` is the class that gives its colour."""

    label: str
    value: float
    shown: str
    kind: str
    low: float | None = None
    high: float | None = None


class Bin(NamedTuple):
    """One column of a histogram: how many queries are between `low` and `high`."""

    low: float
    high: float
    queries: int
    kind: str
    shown: str


def figure(title: str, alternative: str, height: float, *shapes: Markup) -> Markup:
    """A drawing with its title. `alternative` says the same to those who cannot see it."""
    drawing = tag(
        "svg",
        *shapes,
        class_="chart",
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="img",
        aria_label=f"{title}. {alternative}",
    )
    return tag("figure", tag("figcaption", title), drawing)


def bars(title: str, values: Sequence[Bar], top: float | None = None) -> Markup:
    """Horizontal bars from 0 to `top`; without it, the longest one fills the width."""
    longest = top or max((bar.high or bar.value for bar in values), default=0) or 1
    scale = (WIDTH - VALUE_SPACE) / longest
    shapes: list[Markup] = []
    for number, bar in enumerate(values):
        y = number * ROW
        shapes.append(tag("text", bar.label, x="0", y=f"{y + LABEL}"))
        shapes.append(rectangle(0, y + LABEL + 5, max(bar.value * scale, 1), BAR, bar.kind))
        if bar.low is not None and bar.high is not None:
            shapes.append(_whisker(bar.low * scale, bar.high * scale, y + LABEL + 5 + BAR / 2))
        end = max(bar.value, bar.high or 0) * scale
        shapes.append(tag("text", bar.shown, x=f"{end + 6:.1f}", y=f"{y + LABEL + BAR + 3}"))
    alternative = "; ".join(f"{bar.label}: {bar.shown}" for bar in values)
    return figure(title, alternative, max(1, len(values)) * ROW, *shapes)


def _whisker(low: float, high: float, y: float) -> Markup:
    return tag(
        "path", class_="whisker", d=f"M{low:.1f} {y - 4:.1f}v8M{low:.1f} {y:.1f}H{high:.1f}M{high:.1f} {y - 4:.1f}v8"
    )


def rectangle(x: float, y: float, width: float, height: float, kind: str, *content: Markup) -> Markup:
    places = {"x": x, "y": y, "width": width, "height": height}
    return tag("rect", *content, class_=kind, rx="1.5", **{name: f"{value:.1f}" for name, value in places.items()})


def histogram(title: str, bins: Sequence[Bin], axis: str) -> Markup:
    """Columns with their counts above them, and the bounds of some of them below."""
    bottom = HISTOGRAM_HEIGHT - AXIS_SPACE
    step = WIDTH / len(bins)
    scale = (bottom - COUNT_SPACE) / max(1, *(each.queries for each in bins))
    shapes: list[Markup] = []
    for number, each in enumerate(bins):
        x, height = number * step, each.queries * scale
        if each.queries:
            hint = tag("title", f"{each.shown}: {each.queries}")
            shapes.append(rectangle(x + 1, bottom - height, step - 2, height, each.kind, hint))
            shapes.append(_centred(str(each.queries), x + step / 2, bottom - height - 4, "quiet"))
    shapes.append(tag("path", class_="axis", d=f"M0 {bottom}H{WIDTH}"))
    middle = len(bins) // 2
    for place in (0, middle // 2, middle, len(bins) - middle // 2, len(bins)):
        x = WIDTH / 2 if place == middle else place * step
        bound = 0.0 if place == middle else bins[place].low if place < len(bins) else bins[-1].high
        anchor = "start" if place == 0 else "end" if place == len(bins) else "middle"
        shapes.append(_centred(f"{bound:+.2g}" if bound else "0", x, bottom + 13, "quiet", anchor))
    shapes.append(_centred(axis, WIDTH / 2, HISTOGRAM_HEIGHT - 4, "quiet"))
    alternative = "; ".join(f"{each.shown}: {each.queries}" for each in bins if each.queries)
    return figure(title, alternative, HISTOGRAM_HEIGHT, *shapes)


def _centred(content: str, x: float, y: float, kind: str, anchor: str = "middle") -> Markup:
    return tag("text", content, class_=kind, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)

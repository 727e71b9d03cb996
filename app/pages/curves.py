"""Curves over percentiles as inline SVG, with a number at the end of each that its key explains."""

from collections.abc import Iterator, Sequence
from math import ceil, floor, log10
from statistics import fmean
from typing import NamedTuple

from app.pages.charts import WIDTH, figure
from app.pages.markup import Markup, tag
from app.pages.page import listing

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 230, 44, 30, 18, 34
COLOURS = 8
# Values further apart than this are drawn on a logarithmic axis.
FAR_APART = 8
STEPS = (1, 2, 5)
MOST_TICKS = 7
NUMBER_HEIGHT = 10


class Curve(NamedTuple):
    """Values at the same places as those of the other curves. `number` chooses the colour."""

    number: int
    label: str
    values: Sequence[float]
    is_dashed: bool = False
    mark: str = ""
    """Stands at the end of the curve instead of its number, if the label begins with it."""

    @property
    def style(self) -> str:
        return f"curve c{(self.number - 1) % COLOURS}{' dashed' if self.is_dashed else ''}"


def curves(title: str, places: Sequence[str], drawn: Sequence[Curve], unit: str) -> Markup:
    """One line per curve, from the first of the `places` to the last, which are equally far apart."""
    ticks = list(_ticks([value for curve in drawn for value in curve.values]))
    logarithmic = ticks[0] > 0
    low, high = (log10(ticks[0]), log10(ticks[-1])) if logarithmic else (0.0, ticks[-1])
    step = (WIDTH - LEFT - RIGHT) / max(1, len(places) - 1)

    def y(value: float) -> float:
        share = ((log10(value) if logarithmic else value) - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    shapes = [tag("text", unit, class_="quiet", x=f"{LEFT - 6}", y="8", text_anchor="end")]
    for tick in ticks:
        shapes.append(tag("path", class_="mesh", d=f"M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"))
        shapes.append(
            tag("text", f"{tick:,g}", class_="quiet", x=f"{LEFT - 6}", y=f"{y(tick) + 3.5:.1f}", text_anchor="end")
        )
    for number, place in enumerate(places):
        x = f"{LEFT + number * step:.1f}"
        shapes.append(tag("text", place, class_="quiet", x=x, y=f"{HEIGHT - BOTTOM + 14}", text_anchor="middle"))
    for curve in drawn:
        points = " ".join(f"{LEFT + number * step:.1f},{y(value):.1f}" for number, value in enumerate(curve.values))
        shapes.append(tag("polyline", tag("title", curve.label), class_=curve.style, points=points))
    ends = _spread([y(curve.values[-1]) for curve in drawn])
    for curve, end in zip(drawn, ends, strict=True):
        shapes.append(
            tag("text", curve.mark or str(curve.number), class_="quiet", x=f"{WIDTH - RIGHT + 5}", y=f"{end + 3.5:.1f}")
        )
    alternative = "; ".join(f"{curve.label}: {_described(places, curve.values, unit)}" for curve in drawn)
    return figure(title, alternative, HEIGHT, *shapes)


def _described(places: Sequence[str], values: Sequence[float], unit: str) -> str:
    return ", ".join(f"{place} {value:.4g} {unit}" for place, value in zip(places, values, strict=True))


def key(drawn: Sequence[Curve]) -> Markup:
    """What the numbers and colours of the curves mean."""
    line = {"viewBox": "0 0 28 10", "aria_hidden": "true"}
    return listing(
        (
            tag(
                "span",
                tag("svg", tag("path", class_=curve.style, d="M0 5H28"), **line),
                *(() if curve.mark else (tag("b", f"{curve.number} "),)),
                curve.label,
            )
            for curve in drawn
        ),
        "key",
    )


def _ticks(values: Sequence[float]) -> Iterator[float]:
    """Round numbers from below the smallest value to above the largest; from 0 if they are not far apart."""
    least, most = min(values), max(values)
    if least <= 0 or most / least < FAR_APART:
        step = _rounded_up(most / (MOST_TICKS - 2)) if most > 0 else 1.0
        yield from (number * step for number in range(ceil(most / step) + 1 if most > 0 else 2))
        return
    decades = range(floor(log10(least)), ceil(log10(most)) + 1)
    found = [factor * 10.0**decade for decade in decades for factor in STEPS]
    first = max(number for number, tick in enumerate(found) if tick <= least)
    last = min(number for number, tick in enumerate(found) if tick >= most)
    inside = found[first : last + 1]
    yield from inside if len(inside) <= MOST_TICKS else [inside[0], *_powers(inside[1:-1]), inside[-1]]


def _powers(ticks: Sequence[float]) -> list[float]:
    """The powers of ten among the ticks."""
    return [tick for tick in ticks if log10(tick).is_integer()]


def _rounded_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20 ..."""
    decade = 10.0 ** floor(log10(value))
    return next(factor * decade for factor in (*STEPS, 10) if factor * decade >= value)


def _spread(places: Sequence[float]) -> list[float]:
    """The places, moved as little as keeps the numbers apart, in the same order.

    Numbers that would overlap form a group, which has its centre where the centre of their places is.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    groups: list[list[float]] = []
    for number, index in enumerate(order):
        # Where the group would start, if it had only this number.
        groups.append([places[index] - number * NUMBER_HEIGHT])
        while len(groups) > 1 and fmean(groups[-2]) > fmean(groups[-1]):
            last = groups.pop()
            groups[-1] += last
    starts = [fmean(group) for group in groups for _ in group]
    moved = {
        index: start + number * NUMBER_HEIGHT for number, (index, start) in enumerate(zip(order, starts, strict=True))
    }
    return [moved[index] for index in range(len(places))]

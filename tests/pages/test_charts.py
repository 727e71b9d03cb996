"""The charts of the pages: what they show, and how they describe it."""

import re
from itertools import pairwise

import pytest

from app.pages.charts import WIDTH, Bar, Bin, bars, histogram
from app.pages.curves import BOTTOM, HEIGHT, NUMBER_HEIGHT, RIGHT, TOP, Curve, curves, key
from app.pages.markup import Markup, join, tag, text
from tests.pages.reader import Element, read


def numbers(drawing: Element) -> dict[str, float]:
    """Where the number of each curve is."""
    right = [each for each in drawing.all("text") if float(each.attributes["x"]) > WIDTH - RIGHT]
    return {each.text: float(each.attributes["y"]) for each in right}


def axis(drawing: Element) -> list[float]:
    """The values at the lines of the mesh."""
    found = [each.text.replace(",", "") for each in drawing.all("text") if each.attributes.get("text-anchor") == "end"]
    return [float(value) for value in found if re.fullmatch(r"[\d.e+-]+", value)]


def test_texts_are_escaped_in_contents_and_attributes_and_only_once() -> None:
    made = tag("p", "<b>&\"'", tag("i", "<"), title="\"'<>")
    assert made == '<p title="&quot;&#x27;&lt;&gt;">&lt;b&gt;&amp;&quot;&#x27;<i>&lt;</i></p>'
    assert join(made, "<") == made + "&lt;"
    assert isinstance(text("x"), Markup)


def test_characters_that_html_cannot_hold_are_replaced() -> None:
    assert text("a\x00b\x1bc\ud800d\x85e\tf\n") == "a\ufffdb\ufffdc\ufffdd\ufffde\tf\n"


def test_bars_are_as_long_as_their_values() -> None:
    drawing = read(bars("Speed", [Bar("a<", 10, "ten", "ours", 5, 20), Bar("b", 40, "forty", "other")]))
    ten, forty = (float(each.attributes["width"]) for each in drawing.all("rect"))
    assert ten == pytest.approx(forty / 4, abs=0.1)
    assert drawing.all("svg")[0].attributes["aria-label"] == "Speed. a<: ten; b: forty"
    assert len(drawing.all("path", "whisker")) == 1


def test_bars_without_any_value_have_no_length() -> None:
    drawing = read(bars("Speed", [Bar("a", 0, "died", "ours")]))
    assert [float(each.attributes["width"]) for each in drawing.all("rect")] == [1]


def test_a_histogram_has_a_column_for_each_bin_that_is_not_empty() -> None:
    bins = [Bin(-1, 0, 3, "lost", "lost"), Bin(0, 0, 0, "same", "unchanged"), Bin(0, 1, 6, "gained", "gained")]
    drawing = read(histogram("Gains", bins, "gain"))
    lost, gained = drawing.all("rect")
    assert float(gained.attributes["height"]) == pytest.approx(2 * float(lost.attributes["height"]), abs=0.1)
    assert (lost.attributes["class"], lost.all("title")[0].text) == ("lost", "lost: 3")
    assert drawing.all("svg")[0].attributes["aria-label"] == "Gains. lost: 3; gained: 6"


@pytest.mark.parametrize(
    "values", [[1.0, 1.0], [0.02, 0.5], [3.0, 29000.0], [80.0, 100.0], [999.0, 1001.0], [0.0, 0.0]]
)
def test_the_axis_of_curves_covers_all_values(values: list[float]) -> None:
    drawing = read(curves("Time", ["p50", "p99"], [Curve(1, "a", values)], "ms"))
    assert axis(drawing)[0] <= min(values)
    assert axis(drawing)[-1] >= max(values)
    assert 2 <= len(axis(drawing)) <= 9
    [line] = drawing.all("polyline")
    heights = [float(point.split(",")[1]) for point in line.attributes["points"].split()]
    assert TOP <= heights[-1] <= heights[0] <= HEIGHT - BOTTOM


def test_curves_are_described_in_words() -> None:
    drawing = read(curves("Time", ["p50", "p99"], [Curve(3, "a", [1.25, 20.0], True)], "ms"))
    assert drawing.all("svg")[0].attributes["aria-label"] == "Time. a: p50 1.25 ms, p99 20 ms"
    assert drawing.all("polyline")[0].attributes["class"] == "curve c2 dashed"


def test_the_numbers_of_curves_do_not_overlap_and_have_the_order_of_the_curves() -> None:
    drawn = [Curve(number, f"{number}", [100.0, 100.0 + number % 3]) for number in range(1, 12)]
    drawn.append(Curve(12, "far away", [100.0, 5000.0]))
    places = numbers(read(curves("Time", ["p50", "p99"], drawn, "ms")))
    assert len(places) == 12
    ordered = sorted(places.values())
    assert all(below - above >= NUMBER_HEIGHT - 0.11 for above, below in pairwise(ordered)), "rounded to a tenth"
    by_height = sorted(places, key=lambda number: places[number])
    assert by_height[0] == "12"
    assert {int(number) % 3 for number in by_height[1:4]} == {2}


def test_the_key_explains_each_number() -> None:
    made = read(key([Curve(1, "the <service>", []), Curve(4, "a peer", [], True)]))
    assert [each.text for each in made.all("li")] == ["1 the <service>", "4 a peer"]
    assert [each.attributes["class"] for each in made.all("path")] == ["curve c0", "curve c3 dashed"]


def test_a_mark_stands_for_the_number_of_a_curve() -> None:
    marked = Curve(2, "80% of the capacity", [1.0, 2.0], mark="80%")
    assert list(numbers(read(curves("Time", ["p50", "p99"], [marked], "s")))) == ["80%"]
    assert [each.text for each in read(key([marked])).all("li")] == ["80% of the capacity"]

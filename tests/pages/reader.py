"""Reads a page as a browser would: its elements, with their attributes and texts."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"link", "meta"}


@dataclass
class Element:
    name: str
    attributes: dict[str, str]
    text: str = ""
    """Of the element and everything inside it."""
    inside: list["Element"] = field(default_factory=list)

    def all(self, name: str, class_: str = "") -> list["Element"]:
        """Elements of this name, and of this class if one is given, at any depth."""
        return (
            [
                each
                for each in self.inside
                if each.name == name and class_ in each.attributes.get("class", "").split(" ")
            ]
            if class_
            else [each for each in self.inside if each.name == name]
        )

    def rows(self) -> list[list[str]]:
        """The cells of a table."""
        return [[cell.text.strip() for cell in row.inside if cell.name in ("th", "td")] for row in self.all("tr")]


class Reader(HTMLParser):
    def __init__(self, document: str) -> None:
        super().__init__()
        self.page = Element("page", {})
        self.open = [self.page]
        self.feed(document)
        self.close()
        assert self.open == [self.page], f"not closed: {[each.name for each in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, {name: value or "" for name, value in attrs})
        for each in self.open:
            each.inside.append(made)
        if tag not in VOID:
            self.open.append(made)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().name == tag

    def handle_data(self, data: str) -> None:
        for each in self.open:
            each.text += data


def read(document: str) -> Element:
    """The elements of a page. Fails if one is not closed."""
    return Reader(document).page


def check_self_contained(document: str) -> None:
    """The page has no script, requests nothing, and describes its drawings and tables."""
    page = read(document)
    names = {element.name for element in page.inside}
    assert not names & {"script", "iframe", "object", "embed", "img", "image", "use", "form", "base", "foreignobject"}
    policies = [each for each in page.all("meta") if each.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert [policy.attributes["content"] for policy in policies] == [
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    ]
    for element in page.inside:
        for name, value in element.attributes.items():
            assert not name.startswith("on"), f"{name} of {element.name} is code"
            assert name not in ("src", "srcset", "style", "xlink:href"), f"{element.name} has {name}"
            assert name != "href" or value == "data:," or value.startswith("#"), f"{element.name} leads to {value}"
    targets = {element.attributes["id"] for element in page.inside if "id" in element.attributes}
    assert {link.attributes["href"][1:] for link in page.all("a")} <= targets
    [style] = page.all("style")
    assert "url(" not in style.text
    assert "@import" not in style.text
    for drawing in page.all("svg", "chart"):
        assert drawing.attributes["role"] == "img"
        assert len(drawing.attributes["aria-label"]) > 10
    for table in page.all("table"):
        assert table.all("caption")[0].text
        assert all(heading.attributes["scope"] in ("col", "row") for heading in table.all("th"))

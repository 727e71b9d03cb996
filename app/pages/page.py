"""The frame of a report: the head with its facts, sections, tables, and the file."""

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import typer

from app import __version__
from app.pages.markup import Markup, tag

STYLE = Path(__file__).with_name("page.css")
# The browser itself refuses whatever an escaped text might still ask for.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, facts: Mapping[str, str], *sections: str) -> Markup:
    """A whole document. `facts` are shown below the title, with the time and the version."""
    now = datetime.now(UTC)
    date = tag("time", f"{now:%Y-%m-%d %H:%M} UTC", datetime=now.isoformat(timespec="seconds"))
    rows = (tag("div", tag("dt", name), tag("dd", value)) for name, value in {**facts, "date": date}.items())
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Markup(STYLE.read_text())),
    )
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("dl", *rows, class_="facts")),
        tag("main", *sections),
        tag("footer", f"Reranker {__version__}"),
    )
    return Markup(f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n")


def section(heading: str, *content: str) -> Markup:
    return tag("section", tag("h2", heading), *content)


def paragraph(*content: str) -> Markup:
    return tag("p", *content)


def grid(*content: str) -> Markup:
    """Figures next to each other where the screen is wide enough."""
    return tag("div", *content, class_="grid")


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """A table with a heading per column and per row. It scrolls sideways where the screen is too narrow."""
    columns = tag("tr", *(tag("th", name, scope="col") for name in head))
    body = (tag("tr", _row_heading(row[0]), *(tag("td", cell) for cell in row[1:])) for row in rows)
    made = tag("table", tag("caption", caption), tag("thead", columns), tag("tbody", *body))
    return tag("div", made, class_="scroll", role="region", aria_label=caption, tabindex="0")


def _row_heading(name: str) -> Markup:
    """The heading of a row; one that starts with a space belongs to the row above."""
    return tag("th", name, scope="row", class_="inner" if name.startswith(" ") else "")


def listing(items: Iterable[str], class_: str = "") -> Markup:
    return tag("ul", *(tag("li", item) for item in items), class_=class_)


def check_writable(file: Path, option: str) -> None:
    """Fail before the measurement, which may take long. Raises `typer.BadParameter`."""
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise typer.BadParameter(f"{str(file)!r} cannot be written", param_hint=option)


def save(document: Markup, file: Path) -> None:
    """Write the document. Exits with status 1 and one line if that fails."""
    try:
        file.write_text(document, encoding="utf-8")
    except OSError as error:
        typer.echo(f"--html: {str(file)!r} cannot be written: {error.strerror}", err=True)
        raise typer.Exit(1) from None

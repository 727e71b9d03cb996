"""The option of the commands that write a page."""

from pathlib import Path
from typing import Annotated

import typer

from app.pages.page import check_writable


def _writable(file: Path | None) -> Path | None:
    if file:
        check_writable(file, "--html")
    return file


HtmlFile = Annotated[
    Path | None,
    typer.Option("--html", dir_okay=False, callback=_writable, help="Also write a page with tables and charts"),
]

"""HTML elements that escape every text."""

import re
from html import escape

# HTML has no way to write these characters, and UTF-8 has none for the surrogates.
UNWRITABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
VOID = {"link", "meta"}


class Markup(str):
    """HTML that is inserted as it is. Every other string is escaped."""

    __slots__ = ()


def text(value: str) -> Markup:
    """The string as HTML, in the content of an element or in an attribute."""
    return value if isinstance(value, Markup) else Markup(escape(UNWRITABLE.sub("\ufffd", value)))


def tag(name: str, /, *children: str, **attributes: str) -> Markup:
    """An element. `class_` is the attribute `class`, and `text_anchor` is `text-anchor`."""
    written = "".join(
        f' {attribute.rstrip("_").replace("_", "-")}="{text(value)}"' for attribute, value in attributes.items()
    )
    return Markup(f"<{name}{written}>" if name in VOID else f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str) -> Markup:
    """Elements and texts, one after another."""
    return Markup("".join(map(text, children)))


def shortened(value: str, characters: int) -> str:
    """The text, cut after this many characters."""
    return value if len(value) <= characters else f"{value[: characters - 1].rstrip()}…"

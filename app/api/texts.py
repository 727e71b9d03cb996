"""Texts as clients and frameworks wrap them, and repaired texts."""

from collections.abc import Sequence
from typing import Any

from pydantic_core import PydanticCustomError

# Where LangChain (Python, JavaScript), Haystack, Spring AI, vLLM and the hosted services put the text of an object.
TEXT_KEYS = ("text", "content", "page_content", "pageContent")
MEDIA_KEYS = ("image", "image_url", "images", "input_image", "video", "video_url", "audio", "audio_url", "input_audio")


def as_list(value: Any) -> Any:
    """A single text or object as a list of one."""
    return [value] if isinstance(value, str | dict) else value


def unwrap(value: Any) -> Any:
    """The text inside an object or a list of parts. Other values are unchanged, and fail the validation of their field.

    Raises `PydanticCustomError` for pictures and other media.
    """
    if not isinstance(value, dict | list):
        return value
    if name := media(value):
        raise PydanticCustomError("media", "must be a text: '{name}' is not supported", {"name": name})
    text = text_of_parts(value) if isinstance(value, list) else find_text(value)
    return value if text is None else text


def unwrap_and_repair(value: Any) -> Any:
    """As `unwrap`, without broken characters."""
    text = unwrap(value)
    return repaired(text) if isinstance(text, str) else text


def find_text(value: dict[str, Any]) -> str | None:
    """The text of an object; None if it has none, or anything but text in its parts."""
    for key in TEXT_KEYS:
        found = value.get(key)
        if isinstance(found, str):
            return found
        if key == "content" and isinstance(found, list):
            return text_of_parts(found)
    return None


def text_of_parts(parts: Sequence[Any]) -> str | None:
    """The joined texts of `[{"type": "text", "text": "…"}]`; None if a part has no text."""
    texts = [part if isinstance(part, str) else find_text(part) if isinstance(part, dict) else None for part in parts]
    known = [text for text in texts if text is not None]
    return "\n".join(known) if known and len(known) == len(texts) else None


def media(value: Any) -> str | None:
    """The name of a field that is not text, in an object or its parts."""
    if isinstance(value, list):
        return next(filter(None, map(media, value)), None)
    if not isinstance(value, dict):
        return None
    kind = value.get("type")
    if isinstance(kind, str) and kind in MEDIA_KEYS:
        return kind
    name = next((name for name in MEDIA_KEYS if value.get(name) is not None), None)
    return name or media(value.get("content") if isinstance(value.get("content"), list) else None)


def repaired(text: str) -> str:
    """The text with U+FFFD in place of lone surrogates: half characters, as in text from broken PDF files."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def repaired_deeply(value: Any) -> Any:
    """The JSON value with all its texts repaired. Raises `RecursionError`."""
    if isinstance(value, str):
        return repaired(value)
    if isinstance(value, dict):
        return {repaired(name): repaired_deeply(item) for name, item in value.items()}
    return [repaired_deeply(item) for item in value] if isinstance(value, list) else value

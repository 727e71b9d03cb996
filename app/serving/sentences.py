"""Where the sentences of a text begin and end: rules for many languages, without a model.

Each rule looks at a bounded number of characters, so the time grows with the length of the text only.
"""

import re
import unicodedata
from collections.abc import Iterator

from app.types import Span

# A longer sentence, such as a table or a text without punctuation, is cut between words.
MAX_CHARS = 600
# If a line is at least this long and the next one begins in lower case, a program has broken the sentence into lines.
WRAPPED_CHARS = 40
# Characters of the last word that are compared with the abbreviations.
LAST_CHARS = 24

WIDE_STOPS = "。！？｡।॥؟۔"
BREAKS = "\n\r\v\f\x85\u2028\u2029"
CLOSERS = "\"'”’»›)\\]}」』）】》〉"
OPENERS = "\"'“‘«‹([{"
MARK = re.compile(f"[.!?…{WIDE_STOPS}]+[{CLOSERS}]*|[{BREAKS}]\\s*")
WITHOUT_SPACES = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
VISIBLE = re.compile(r"\S")
PAUSE = re.compile(r"[\s，、；：]")

# A full stop behind these ends no sentence.
TITLES = frozenset(
    word
    for words in (
        "mr mrs ms dr prof st mt rev hon gen col capt lt sgt gov sen rep messrs",
        "mme mlle sr sra srta dott sig",
        "vs cf viz e.g i.e eg ie z.b d.h u.a bzw vgl bspw p.ej p.ex",
    )
    for word in words.split()
)
# A full stop behind these ends no sentence if a number follows.
COUNTED = frozenset(
    word
    for words in (
        "no nos nr nº fig figs eq eqs vol vols ch chap sec sect art pp p par tab abs",
        "jan feb mar apr jun jul aug sep sept oct nov dec",
    )
    for word in words.split()
)
# A full stop behind these ends no sentence if a word in lower case follows.
SHORTENED = frozenset(["etc", "inc", "ltd", "co", "corp", "al", "approx", "ca", "usw", "dept", "est", "ed", "eds"])
INITIALS = re.compile(r"([^\W\d_]\.)*[^\W\d_]")
NUMBERING = re.compile(r"\s*[(\[]?(\d{1,3}|[^\W\d_])")

# What continues the character before it, besides the marks of Unicode.
CONTINUING = re.compile(
    "[\u200c\u200d\uff9e\uff9f\u0e33\u0eb3\u1160-\u11ff\ud7b0-\ud7fb\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]"
)
JOINER = "\u200d"
FLAG_LETTER = re.compile("[\U0001f1e6-\U0001f1ff]")
VIRAMA = 9


def sentences(text: str) -> list[Span]:
    """The spans of the sentences, in order. They leave out only the whitespace between sentences."""
    spans, start = list[Span](), 0
    for end in _ends(text):
        spans += _pieces(text, start, end)
        start = end
    return spans


def is_inside_character(text: str, place: int) -> bool:
    """Whether a cut here would separate what a reader sees as one character, such as a letter and its accent."""
    if not 0 < place < len(text):
        return False
    before, here = text[place - 1], text[place]
    return (
        unicodedata.category(here).startswith("M")
        or CONTINUING.match(here) is not None
        or before == JOINER
        or unicodedata.combining(before) == VIRAMA
        or (FLAG_LETTER.match(before) is not None and FLAG_LETTER.match(here) is not None)
        or ("\ud800" <= before <= "\udbff" and "\udc00" <= here <= "\udfff")
    )


def _ends(text: str) -> Iterator[int]:
    start = 0
    for match in MARK.finditer(text):
        end = match.end()
        if _is_end(text, start, match) and not is_inside_character(text, end):
            yield end
            start = end
    yield len(text)


def _is_end(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether the sentence that begins at `start` ends with this mark."""
    mark, end = match[0], match.end()
    if mark[0] in BREAKS:
        return not _is_wrapped(text, match)
    if any(stop in mark for stop in WIDE_STOPS):
        return True
    if not (following := text[end : end + 1]).isspace():
        return not following or ("." not in mark and WITHOUT_SPACES.match(following) is not None)
    found = VISIBLE.search(text, end)
    following = found[0] if found else ""
    if following.islower() and (mark[-1] not in ".!?" or mark.endswith("..")):
        return False  # an ellipsis, or direct speech that goes on
    return mark[0] != "." or not _is_abbreviated(text, start, match.start(), following)


def _is_wrapped(text: str, match: re.Match[str]) -> bool:
    line = text[max(0, match.start() - WRAPPED_CHARS) : match.start()]
    is_single = match[0].replace("\r\n", "\n").strip(" \t") == "\n"
    return (
        is_single and len(line) == WRAPPED_CHARS and "\n" not in line and text[match.end() : match.end() + 1].islower()
    )


def _is_abbreviated(text: str, start: int, stop: int, following: str) -> bool:
    """Whether the full stop at `stop` belongs to its word, or to a number or letter in front of the sentence."""
    begin = max(start, stop - LAST_CHARS)
    before = text[begin:stop]
    if begin == start and NUMBERING.fullmatch(before):
        return True
    written = before.split()[-1].lstrip(OPENERS) if before.strip() else ""
    word = written.lower()
    if word in COUNTED:
        return following.isdigit()
    if word in SHORTENED:
        return following.islower()
    return word in TITLES or (written != "I" and INITIALS.fullmatch(written) is not None)


def _pieces(text: str, start: int, end: int) -> Iterator[Span]:
    """The part of the text without the whitespace around it, cut if it is too long."""
    while found := VISIBLE.search(text, start, end):
        start = found.start()
        if is_inside_character(text, start) and text[start - 1] not in BREAKS:
            start -= 1
        cut = _cut(text, start, end) if end - start > MAX_CHARS else end
        yield start, start + len(text[start:cut].rstrip())
        start = cut


def _cut(text: str, start: int, end: int) -> int:
    """Where a sentence that is too long is cut: in its second half, or else at the next place between characters."""
    middle, most = start + MAX_CHARS // 2, start + MAX_CHARS
    pauses = [match.end() for match in PAUSE.finditer(text, middle, most)]
    places = [place for place in pauses if not is_inside_character(text, place)]
    if places:
        return places[-1]
    later = range(most, end)
    return next((place for place in later if text[place].isalnum() and not is_inside_character(text, place)), end)

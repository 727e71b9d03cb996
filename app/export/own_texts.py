"""The texts that ship with the project: queries, each with its passage, in English and in ten other scripts."""

import json
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from app.export.parity import Group

ENGLISH = "English"
CALIBRATION, SCRIPTS = (Path(__file__).parent / name for name in ("calibration.jsonl", "scripts.jsonl"))
# A vocabulary without a script gives unknown tokens for its texts. One that has only its letters or bytes, as BERT's
# English one, gives far more tokens than for the same text in English, or less than a character for each token.
MOST_UNKNOWN, MOST_TOKENS, LEAST_CHARACTERS = 0.02, 2.5, 1.0
# Documents of a group: passages, and passages in a row that make two longer documents.
PASSAGES, LONG, LONGER = 12, 3, 8


class Entry(NamedTuple):
    """A text in another script than English, or in another language. Its content is that of an English one."""

    script: str
    language: str
    """Its code."""
    english: str
    """The query of the English text."""
    query: str
    passage: str


def own_entries() -> list[tuple[str, str]]:
    """The English queries, each with its passage."""
    rows = map(json.loads, CALIBRATION.read_text("utf-8").splitlines())
    return [(row["query"], row["passage"]) for row in rows]


def script_entries() -> dict[str, list[Entry]]:
    """The texts of each other script."""
    found: dict[str, list[Entry]] = {}
    for line in SCRIPTS.read_text("utf-8").splitlines():
        entry = Entry(**json.loads(line))
        found.setdefault(entry.script, []).append(entry)
    return found


def own_texts(tokenizer: Tokenizer, languages: Sequence[str] = ()) -> list[Group]:
    """Groups in English and in each script that the tokenizer reads, in turn.

    `languages`: the codes of the model's languages, if it declares them. Texts in others are left out.
    """
    reader = _Reader(tokenizer)
    kept = {
        script: [(entry.query, entry.passage) for entry in entries if not languages or entry.language in languages]
        for script, entries in script_entries().items()
        if reader.reads(entries)
    }
    by_script = [list(_groups(script, entries)) for script, entries in {ENGLISH: own_entries(), **kept}.items()]
    return [group for group in chain(*zip_longest(*by_script)) if group is not None]


def _groups(script: str, entries: Sequence[tuple[str, str]]) -> Iterator[Group]:
    """A group for each query: its passage, passages of other queries, and two longer documents."""
    passages = [passage for _, passage in entries]

    def following(start: int, most: int) -> list[str]:
        return [passages[(start + step) % len(passages)] for step in range(min(most, len(passages)))]

    for at, (query, _) in enumerate(entries):
        longer = [" ".join(following(at, LONG)), " ".join(following(at + 5, LONGER))]
        yield Group(query, [*following(at, PASSAGES), *longer], script=script)


class _Reader:
    """Finds out which scripts a tokenizer reads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        state = tokenizer.to_str()
        self._tokenizer = Tokenizer.from_str(state)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        model = json.loads(state)["model"]
        unknown = model.get("unk_token")
        self._unknown: int | None = model.get("unk_id") if unknown is None else self._tokenizer.token_to_id(unknown)
        self._passages = dict(own_entries())

    def reads(self, entries: Sequence[Entry]) -> bool:
        texts = [text for entry in entries for text in (entry.query, entry.passage)]
        ids = self._ids(texts)
        english = self._ids([text for entry in entries for text in (entry.english, self._passages[entry.english])])
        return (
            ids.count(self._unknown) <= MOST_UNKNOWN * len(ids)
            and len(ids) <= MOST_TOKENS * len(english)
            and sum(map(len, texts)) >= LEAST_CHARACTERS * len(ids)
        )

    def _ids(self, texts: Sequence[str]) -> list[int | None]:
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [token for encoding in encoded for token in encoding.ids]

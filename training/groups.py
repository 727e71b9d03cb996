"""Training data: a query, documents that are hard to distinguish, and signals about each document."""

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Weights of the signals in the target logits. The weight of e5 is large because its cosines lie close together.
LABEL, BM25, COSINE, E5, TEACHER = 4.0, 2.5, 4.0, 25.0, 0.5
# Files of a folder of groups.
TRAIN_FILE, HELD_OUT_FILE = "train.jsonl.gz", "heldout.jsonl.gz"


@dataclass(slots=True)
class Group:
    """One query and its documents. Each list has a value per document, or is empty if the signal is unknown."""

    query: str
    documents: list[str]
    labels: list[float]
    """1 for a relevant document, 0 for others."""
    bm25: list[float] = field(default_factory=list)
    """BM25 scores, as a share of the best in the group."""
    cosines: list[float] = field(default_factory=list)
    """Cosines of the bi-encoder."""
    e5: list[float] = field(default_factory=list)
    """Cosines of multilingual-e5."""
    teacher: list[float] = field(default_factory=list)
    """Logits of a trained cross-encoder."""
    source: str = ""

    def kept(self, documents: list[int]) -> "Group":
        """The group with only the documents at these indices."""
        signals = {
            name: [getattr(self, name)[at] for at in documents] if getattr(self, name) else []
            for name in ("documents", "labels", "bm25", "cosines", "e5", "teacher")
        }
        return Group(query=self.query, source=self.source, **signals)

    def targets(self) -> list[float]:
        """Target logits: the weighted sum of all signals, because labels alone treat all negatives as equally wrong."""
        fused = [LABEL * label for label in self.labels]
        signals = ((BM25, self.bm25), (COSINE, self.cosines), (E5, self.e5), (TEACHER, self.teacher))
        for weight, signal in signals:
            if signal:
                fused = [total + weight * value for total, value in zip(fused, signal, strict=True)]
        return fused


def write_groups(groups: Iterable[Group], file: Path) -> int:
    """Write compressed JSONL; returns the number of groups."""
    with gzip.open(file, "wt", encoding="utf-8") as lines:
        return sum(bool(lines.write(json.dumps(asdict(group), ensure_ascii=False) + "\n")) for group in groups)


def read_groups(file: Path) -> Iterator[Group]:
    """Read a file of `write_groups`. Raises `ValueError` with the number of a wrong line."""
    for number, row in read_rows(file):
        try:
            yield Group(**row)
        except TypeError as error:
            raise ValueError(f"{file}:{number}: {error}") from None


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSONL file, plain or .gz, with their line numbers. Raises `ValueError`."""
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}:{number}: invalid JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{file}:{number}: expected a JSON object")
            yield number, row

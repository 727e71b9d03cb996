"""What is learnt from: a query, documents that are hard to tell apart for it, and what is known of each."""

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Weights of a document's label, of BM25 (as a share of the best), of the cosines of the bi-encoders and of a trained
# cross-encoder's logit in the target logits. Cosines of multilingual-e5 lie close together.
LABEL, BM25, COSINE, E5, TEACHER = 4.0, 2.5, 4.0, 25.0, 0.5
# The groups of a folder.
TRAIN_FILE, HELD_OUT_FILE = "train.jsonl.gz", "heldout.jsonl.gz"


@dataclass(slots=True)
class Group:
    """One query; the lists are of the same length, or empty where nothing is known."""

    query: str
    documents: list[str]
    labels: list[float]
    """1 for a relevant document, 0 for others."""
    bm25: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    """Of the bi-encoder."""
    e5: list[float] = field(default_factory=list)
    """Cosines of multilingual-e5."""
    teacher: list[float] = field(default_factory=list)
    """Logits of a trained cross-encoder."""
    source: str = ""

    def kept(self, documents: list[int]) -> "Group":
        """Of the documents only these."""
        signals = {
            name: [getattr(self, name)[at] for at in documents] if getattr(self, name) else []
            for name in ("documents", "labels", "bm25", "cosines", "e5", "teacher")
        }
        return Group(query=self.query, source=self.source, **signals)

    def targets(self) -> list[float]:
        """Target logits, fused from all that is known: a label alone knows nothing of how wrong the others are."""
        fused = [LABEL * label for label in self.labels]
        signals = ((BM25, self.bm25), (COSINE, self.cosines), (E5, self.e5), (TEACHER, self.teacher))
        for weight, signal in signals:
            if signal:
                fused = [total + weight * value for total, value in zip(fused, signal, strict=True)]
        return fused


def write_groups(groups: Iterable[Group], file: Path) -> int:
    """As JSONL, compressed; returns how many there were."""
    with gzip.open(file, "wt", encoding="utf-8") as lines:
        return sum(bool(lines.write(json.dumps(asdict(group), ensure_ascii=False) + "\n")) for group in groups)


def read_groups(file: Path) -> Iterator[Group]:
    """What `write_groups` wrote. Raises `ValueError` with the line that is wrong."""
    for number, row in read_rows(file):
        try:
            yield Group(**row)
        except TypeError as error:
            raise ValueError(f"{file}:{number}: {error}") from None


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSONL file, compressed or not, with their line numbers. Raises `ValueError`."""
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}:{number}: no JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{file}:{number}: an object is wanted")
            yield number, row

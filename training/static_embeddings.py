"""The static embeddings of the first stage, distilled from a bi-encoder: `python -m training.static_embeddings`.

1. As in model2vec, the bi-encoder embeds each word piece alone. The embedding is projected on the principal directions
   and weighted by how rare the piece is (smooth inverse frequency).
2. The vectors are trained for some epochs: the sum over a text should point in the direction of the bi-encoder's
   embedding of the text, and a question should be nearest to its own text.
3. The vectors are rotated, so that the first dimensions matter most, and rounded to int8.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch.nn.functional import cross_entropy, normalize

from app.first_stage.embeddings import SHIPPED, Vocabulary
from app.first_stage.words import Lexicon

TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
DIMENSIONS = 256
# Number of texts for the teacher, tokens that it reads of each, and characters that the student reads.
TAUGHT, TEACHER_TOKENS, MAX_CHARS = 20_000, 96, 400
# One in this many passages is not used.
HELD_OUT = 20
SECTION_CHARS, HEADING_WORDS = 150, 3
# Smoothing of the inverse frequency.
SIF = 1e-3
TEMPERATURE, RATE, BATCH = 0.05, 4e-3, 512

Floats = NDArray[np.float32]
Bag = NDArray[np.int64]
"""A text as the row numbers of its pieces."""


def rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a gzipped JSONL file."""
    with gzip.open(file, "rt") as lines:
        return [json.loads(line) for line in lines]


def question_pairs(folder: Path) -> Iterator[tuple[str, str]]:
    """Questions or headings with their texts."""
    passages = {row["pid"]: row["text"] for row in rows(folder / "squad_passages.jsonl.gz")}
    questions = rows(folder / "squad_bm25_negatives.jsonl.gz")
    yield from ((row["q"], passages[row["pos"]]) for row in questions if row["pos"] % HELD_OUT)
    yield from ((row["query"], row["answer"]) for row in rows(folder / "medquad.jsonl.gz") if row["answer"])
    for name in ("docs_opensearch", "docs_powershell"):
        for row in rows(folder / f"{name}.jsonl.gz"):
            if len(row["text"]) >= SECTION_CHARS and len(row["query"].split()) >= HEADING_WORDS:
                yield f"{row['title']} {row['query']}", row["text"]
    yield from ((row["query"], row["text"]) for row in rows(folder / "pubmedqa.jsonl.gz"))


def split(vocabulary: Vocabulary, texts: Sequence[str]) -> list[Bag]:
    """The pieces of each text, split in the same way as in the service."""
    words = Lexicon().read(texts, together=len(texts) * MAX_CHARS)
    pieces = vocabulary.pieces(words.lexicon.words)
    of_word = np.split(pieces.rows, pieces.starts[1:])
    ends = np.cumsum(words.counts)
    return [
        np.concatenate([np.zeros(0, np.int64), *(of_word[place] for place in words.ids[end - count : end])])
        for end, count in zip(ends, words.counts, strict=True)
    ]


def teach(teacher: SentenceTransformer, texts: Sequence[str]) -> Floats:
    """Unit vectors of the teacher, shape (texts, dimensions of the teacher)."""
    teacher.max_seq_length = TEACHER_TOKENS
    found: Floats = teacher.encode(list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=True)
    return found


def teach_pieces(teacher: SentenceTransformer, count: int) -> Floats:
    """The teacher's embedding of each piece alone, between the start and end tokens."""
    tokenizer, found = teacher.tokenizer, []
    with torch.inference_mode():
        for ids in torch.arange(count).split(BATCH):
            begin, end = (torch.full_like(ids, each) for each in (tokenizer.cls_token_id, tokenizer.sep_token_id))
            tokens = torch.stack([begin, ids, end], dim=1)
            features = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
            found.append(normalize(teacher(features)["sentence_embedding"]).numpy())
    return np.concatenate(found)


def first_vectors(pieces: Floats, taught: Floats, bags: Sequence[Bag]) -> tuple[Floats, Floats]:
    """Initial vectors, shape (pieces, DIMENSIONS), and the teacher's texts in the same space."""
    _, directions = np.linalg.eigh(taught.T @ taught)
    directions = directions[:, ::-1][:, :DIMENSIONS]
    counts = np.bincount(np.concatenate(bags), minlength=len(pieces)) + 1
    weights = SIF / (SIF + counts / counts.sum())
    first = (pieces - pieces.mean(0)) @ directions * weights[:, None]
    return first.astype(np.float32), (taught @ directions).astype(np.float32)


class Student(torch.nn.Module):  # type: ignore[misc]
    """A text is the sum of its pieces' vectors."""

    def __init__(self, vectors: Floats) -> None:
        super().__init__()
        self.bag = torch.nn.EmbeddingBag.from_pretrained(torch.from_numpy(vectors), freeze=False, mode="sum")

    def forward(self, bags: Sequence[Bag]) -> torch.Tensor:
        """Unit vectors of the texts."""
        starts = np.cumsum([0, *map(len, bags[:-1])])
        return normalize(self.bag(torch.from_numpy(np.concatenate(bags)), torch.from_numpy(starts)))


def train(
    student: Student, pairs: Sequence[tuple[Bag, Bag]], taught: Sequence[Bag], goals: Floats, epochs: int, seed: int
) -> None:
    """Train: questions near their texts, and texts near the teacher's embeddings `goals`."""
    chosen, steps = np.random.default_rng(seed), len(pairs) // BATCH
    optimizer = torch.optim.Adam(student.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * steps, pct_start=0.1)
    for epoch in range(epochs):
        losses = []
        for batch in chosen.permutation(len(pairs))[: steps * BATCH].reshape(steps, BATCH):
            lesson = chosen.integers(len(taught), size=BATCH)
            questions, texts = (student(bags) for bags in zip(*(pairs[place] for place in batch), strict=True))
            near = (student([taught[place] for place in lesson]) * torch.from_numpy(goals[lesson])).sum(1).mean()
            loss = cross_entropy(questions @ texts.T / TEMPERATURE, torch.arange(BATCH)) - near
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        typer.echo(f"epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.4f}")


def rotated(vectors: Floats, bags: Sequence[Bag]) -> Floats:
    """Rotate the vectors so that the first dimensions hold most of the length of texts."""
    sums = np.stack([vectors[bag].sum(0) for bag in bags])
    _, directions = np.linalg.eigh(sums.T @ sums)
    turned: Floats = (vectors @ directions[:, ::-1]).astype(np.float32)
    return turned


def save(file: Path, pieces: Sequence[str], vectors: Floats) -> None:
    """Save as int8 with a scale per piece."""
    scales = np.maximum(np.abs(vectors).max(1), 1e-6) / 127
    np.savez(
        file,
        vectors=np.rint(vectors / scales[:, None]).astype(np.int8),
        scales=scales.astype(np.float32),
        vocabulary=np.frombuffer("\n".join(pieces).encode(), np.uint8),
    )


def main(
    data: Annotated[Path, typer.Option(help="Folder of training texts")],
    teacher: Annotated[str, typer.Option(help="Bi-encoder with BERT's vocabulary: a folder or a hub id")] = TEACHER,
    output: Annotated[Path, typer.Option(help="File to write")] = SHIPPED,
    pairs: Annotated[int, typer.Option(min=BATCH, help="Pairs of questions and texts to train on")] = 60_000,
    epochs: Annotated[int, typer.Option(min=0, help="Training epochs after the initial distillation")] = 8,
    seed: Annotated[int, typer.Option(help="Random seed")] = 0,
) -> None:
    """Create the static embeddings of the first stage."""
    torch.manual_seed(seed)
    model = SentenceTransformer(teacher, device="cpu")
    by_row = {row: piece for piece, row in model.tokenizer.get_vocab().items()}
    names = [by_row[row] for row in range(len(by_row))]
    vocabulary = Vocabulary(names)
    chosen = np.random.default_rng(seed)
    known = [(question, text[:MAX_CHARS]) for question, text in question_pairs(data)]
    asked = [known[place] for place in chosen.permutation(len(known))[:pairs]]
    distinct = list(dict.fromkeys(text for pair in asked for text in pair))
    bags = dict(zip(distinct, split(vocabulary, distinct), strict=True))
    filled = [text for text in distinct if len(bags[text])]
    sample = [filled[place] for place in chosen.choice(len(filled), TAUGHT, replace=False)]
    first, goals = first_vectors(teach_pieces(model, len(names)), teach(model, sample), list(bags.values()))
    student = Student(first)
    lessons = [(bags[question], bags[text]) for question, text in asked]
    if epochs:
        train(student, lessons, [bags[text] for text in sample], goals, epochs, seed)
    save(output, names, rotated(student.bag.weight.detach().numpy(), [bags[text] for text in sample]))


if __name__ == "__main__":
    typer.run(main)

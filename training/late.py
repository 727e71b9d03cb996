"""Late interaction as a teacher: how well each word of a query is met by some word of a document.

Each token's vector is the bi-encoder's own, in its context; nothing is trained. It knows of no domain and forgets none,
and is a better judge of an order than the cosine of whole texts. Khattab and Zaharia, ColBERT, 2020 (arXiv:2004.12832).
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from training.groups import Group
from training.model import STEP

MAX_LENGTH = 160
# Texts embedded at a time, of about the same length.
ROWS = 64


class LateInteraction:
    """A bi-encoder, read token by token."""

    def __init__(self, model: str, device: str) -> None:
        """`model`: folder or hub id of an encoder."""
        from transformers import AutoModel, AutoTokenizer

        self._device = torch.device(device)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self._model: Any = AutoModel.from_pretrained(model).to(self._device).eval()

    def judge(self, groups: Iterable[Group]) -> Iterator[Group]:
        """The groups with the score of each document; those of a source together, so that a text is read once."""
        for source, own in groupby(sorted(groups, key=_corpus), key=_corpus):
            judged = list(own)
            queries = self._read([group.query for group in judged], f"{source}: questions")
            documents = self._read([text for group in judged for text in group.documents], f"{source}: documents")
            for group in judged:
                query = queries[group.query][1:-1]
                group.late = [round(_max_sim(query, documents[text]), 4) for text in group.documents]
                yield group

    def _read(self, texts: Sequence[str], name: str) -> dict[str, Tensor]:
        """Of each text the unit vectors of its tokens, shape (tokens, dimensions), in float16."""
        order = sorted(set(texts), key=lambda text: (len(text), text))
        vectors: dict[str, Tensor] = {}
        for first in track(range(0, len(order), ROWS), name):
            part = order[first : first + ROWS]
            batch = self._tokenizer(
                part, padding=True, pad_to_multiple_of=STEP, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
            ).to(self._device)
            with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16):
                states = self._model(**batch).last_hidden_state.float()
            states = torch.nn.functional.normalize(states, dim=-1).half().cpu()
            for text, own, mask in zip(part, states, batch["attention_mask"].cpu(), strict=True):
                vectors[text] = own[mask.bool()]
        return vectors


def _corpus(group: Group) -> str:
    return group.source.partition("-")[0]


def _max_sim(query: Tensor, document: Tensor) -> float:
    """The mean over the query's tokens of the cosine of the nearest token of the document; 0 for a query of none."""
    if not len(query):
        return 0.0
    return float((query.float() @ document.float().T).amax(1).mean())

"""Voyage's `/v1/rerank`: the native request, and `data` in the native answer."""

import re
from collections.abc import Container

from pydantic import BaseModel

# rerank-2.5, rerank-2.5-lite, rerank-lite-1. Cohere's models have a word or a `v` in this place.
MODEL = re.compile(r"rerank-(lite-)?\d+(\.\d+)?(-lite)?")


class VoyageResult(BaseModel):
    """One ranked document. The document is its text."""

    index: int
    relevance_score: float
    document: str | None = None


def is_voyage(model: str | None, others: Container[str]) -> bool:
    """Whether a request is Voyage's, by its model and the names of fields that the native dialect does not have.

    Only Voyage has `truncation`. Its own client always sends it, other clients send the model.
    """
    return "truncation" in others or MODEL.fullmatch(model or "") is not None

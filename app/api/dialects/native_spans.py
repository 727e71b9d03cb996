"""Passages inside documents, as the native dialect and Cohere write them."""

from typing import Annotated, Self

from pydantic import BaseModel, Field

from app.api.dialects.native_request import RankRequest, RerankRequest
from app.types import Ranking, Spans


class Span(BaseModel):
    """A passage inside a document: `text` is `document[start:end]` in code points."""

    start: int
    end: int
    score: Annotated[float, Field(description="The model's score for the query and this passage alone")]
    text: str


class SpansMeta(BaseModel):
    """How the passages were found."""

    candidates: Annotated[int, Field(description="Passages with a score: pairs in `scored`, `cached` and `usage`")]
    cut: Annotated[int, Field(description="Returned documents of which the limits left out candidates")]
    error: Annotated[str | None, Field(description="Why passages are missing, such as `deadline_exceeded`")] = None

    @classmethod
    def of(cls, spans: Spans) -> Self:
        """Serialize what the ranking says."""
        return cls(candidates=spans.candidates, cut=spans.cut, error=spans.error)


def spans_of(request: RankRequest, ranking: Ranking, index: int) -> dict[str, list[Span]]:
    """The field of a result with its passages, by name. Empty if none were looked for."""
    found = ranking.spans.by_document.get(index) if ranking.spans else None
    text = request.documents[index].text
    if found is None or text is None or not isinstance(request, RerankRequest):
        return {}
    spans = [
        Span(start=start, end=end, score=logit if request.raw_scores else score, text=text[start:end])
        for (start, end), logit, score in found
    ]
    if relevant := request.relevant:
        # Cohere leaves out an empty list.
        spans = [span for span in spans if span.score >= relevant.threshold]
        return {"relevant_spans": spans} if spans else {}
    return {"spans": spans}

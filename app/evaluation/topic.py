"""A query with its documents and relevance judgments."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

# nDCG uses the gain 2^grade - 1, and ir_measures counts documents for every gain up to the highest.
MAX_GRADE = 15
Grade = Annotated[int, Field(le=MAX_GRADE)]
Id = Annotated[str, Field(coerce_numbers_to_str=True)]


@dataclass(frozen=True, slots=True)
class Topic:
    """One query with its candidate documents and their judgments."""

    qid: str
    query: str
    documents: Mapping[str, str]
    """Texts by document id, in the order of the search that found them."""
    qrels: Mapping[str, int]
    """Grades by document id. A document is relevant from grade 1 on; a missing document is not relevant."""

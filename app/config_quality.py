"""Settings about the quality of the answers: what is measured, compared and kept. Those of the service follow."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class QualitySettings(BaseSettings):
    """The part of `Settings` that changes no answer."""

    model_config = SettingsConfigDict(
        frozen=True, populate_by_name=True, env_ignore_empty=True, extra="ignore", use_attribute_docstrings=True
    )

    # Quality
    relevant_score: float = Field(0.1, alias="RERANKER_RELEVANT_SCORE", ge=0, le=1)
    """A request counts as one without a relevant document if its highest score, from 0 to 1, is lower. It changes no
    answer: see [observability](observability.md#quality)."""

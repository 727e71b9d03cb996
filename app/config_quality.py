"""Settings about the quality of the answers: what is measured, compared and kept. Those of the service follow."""

import re
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from app.config_names import EnvironmentSettings


class QualitySettings(EnvironmentSettings):
    """The part of `Settings` that changes no answer."""

    model_config = SettingsConfigDict(
        frozen=True, populate_by_name=True, env_ignore_empty=True, extra="ignore", use_attribute_docstrings=True
    )

    # Quality
    relevant_score: float = Field(0.1, alias="RERANKER_RELEVANT_SCORE", ge=0, le=1)
    """If the highest score of a request, from 0 to 1, is lower, the request counts as one without a relevant document.
    It changes no answer: see [observability](observability.md#quality)."""
    drift_reference: int = Field(5000, alias="RERANKER_DRIFT_REFERENCE", ge=200)
    """Number of requests after the start that are the reference. The last hour is compared with it: see
    [observability](observability.md#drift)."""
    drift_file: Path | None = Field(None, alias="RERANKER_DRIFT_FILE")
    """File that keeps that reference for the next start. If unset, each start collects a new one."""

    # Sample of requests
    sample_file: Path | None = Field(None, alias="RERANKER_SAMPLE_FILE")
    """File for a sample of the requests, with their texts, for `reranker evaluate`: see
    [observability](observability.md#sample). Each replica needs a separate file. If unset, nothing is written."""
    sample_share: float = Field(0.01, alias="RERANKER_SAMPLE_SHARE", ge=0, le=1)
    """Share of the requests to write, from 0 to 1."""
    sample_max_bytes: int = Field(104_857_600, alias="RERANKER_SAMPLE_MAX_BYTES", ge=1024)
    """Size at which the file is full. Nothing is written then until the file is moved away."""
    sample_redact: re.Pattern[str] | None = Field(None, alias="RERANKER_SAMPLE_REDACT")
    """Regular expression of Python, such as `\\b[\\w.+-]{1,64}@[\\w.-]+`: each match in a text is replaced by
    `[redacted]` before it is written."""

    # Second model
    shadow_model: str | None = Field(None, alias="RERANKER_SHADOW_MODEL")
    """Model that scores some requests after their answers, to compare it with `RERANKER_MODEL`: see
    [observability](observability.md#compare-a-second-model). It uses the same settings
    of backend, precision, device and window. If unset, there is none."""
    shadow_share: float = Field(0.01, alias="RERANKER_SHADOW_SHARE", ge=0, le=1)
    """Share of the requests to score with `RERANKER_SHADOW_MODEL`, from 0 to 1."""
    shadow_threads: int = Field(1, alias="RERANKER_SHADOW_THREADS", ge=1, le=1024)
    """Threads per inference of `RERANKER_SHADOW_MODEL`."""

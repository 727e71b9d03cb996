"""Fixtures of the tests with real processes."""

import pytest

from app.export.command import export_model
from tests.models import make_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Settings of a service with a tiny model, for tests that do not depend on the scores. It starts faster."""
    model = make_model(tmp_path_factory.mktemp("models") / "tiny", spread=0.3)
    export_model(str(model), "openvino", "fp32", model / "openvino-fp32", force=True)
    schedule = {"RERANKER_STREAMS": 1, "RERANKER_PART_TOKENS": 1024, "RERANKER_BATCH_TOKENS": 4096}
    return {"RERANKER_MODEL": model, "RERANKER_BACKEND": "openvino", "RERANKER_PRECISION": "fp32", **schedule}

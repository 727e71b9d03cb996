"""Fixtures of the tests with real processes."""

from collections.abc import Iterator

import pytest

from tests.e2e.process import FIXED
from tests.models import export, make_model


@pytest.fixture(scope="package", autouse=True)
def _no_certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each `httpx.get()`, here and in child processes, loads the certificates of the system, although none is needed.

    That takes longer than the request.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("SSL_CERT_FILE", raising=False)
        environment.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("certificates")))
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Settings of a service with a tiny model, for tests that do not depend on the scores. It starts faster."""
    model = make_model(tmp_path_factory.mktemp("models") / "tiny", spread=0.3)
    export(model, model / "openvino-fp32")
    return {**FIXED, "RERANKER_MODEL": model, "RERANKER_PRECISION": "fp32"}

"""A profile with more inputs, and the service."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.fuzz.service import Service

settings.register_profile("full", max_examples=1000, deadline=None)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()

"""Fixtures, and a summary of the number of generated inputs."""

import time
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.fuzz import counted
from tests.fuzz.service import Service

settings.register_profile("full", max_examples=1000, deadline=None)
STARTED = time.perf_counter()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    total, seconds = counted.total(), time.perf_counter() - STARTED
    terminalreporter.write_line(f"{total} generated inputs, {total / seconds:.0f} per second")

"""Fixtures of the engines' tests."""

import pytest

from tests.models import export_here


@pytest.fixture
def exports_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader exports models in this process instead of in a child process."""
    monkeypatch.setattr("app.engines.models.store._export", export_here)

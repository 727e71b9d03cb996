"""Fixtures of the engines' tests."""

import pytest

from tests.models import export_here


@pytest.fixture
def exports_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that have no export yet are exported in the process of the tests."""
    monkeypatch.setattr("app.engines.models.store._export", export_here)

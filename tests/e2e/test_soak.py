"""A short soak test with the command that also runs for hours."""

import json
import subprocess
import sys

import pytest

from tests.e2e.process import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def test_mixed_and_hostile_traffic_leaks_nothing() -> None:
    command = [sys.executable, "-m", "benchmarks.reliability.soak", "--seconds", "20", "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout, result.stderr
    figures = json.loads(result.stdout)
    assert [row for row in figures["rows"] if not row["ok"]] == []
    assert result.returncode == 0
    assert figures["requests"] > 500
    assert len(figures["rows"]) > 20

"""`reranker tune`: which points are dominated, and settings that a service can read."""

import json
from pathlib import Path

import pytest

from app.environment import environment_names
from app.evaluation.frontier import Point, choose
from app.types import Fusion
from tests.commands import reranker
from tests.e2e.process import FIXED
from tests.evaluation.test_calibrate import CAPITALS, capitals
from tests.evaluation.test_command import jsonl

pytestmark = pytest.mark.timeout(300)


def point(ndcg: float, p50_ms: float) -> Point:
    return Point("m", "int8", 256, None, 20, Fusion("off", 0.0), [ndcg], p50_ms, {})


def test_a_point_is_dominated_by_one_that_is_not_worse_in_either_figure() -> None:
    best, fast, slow, bad, twin = point(0.9, 20), point(0.8, 5), point(0.9, 21), point(0.79, 5), point(0.9, 20)
    points = [best, fast, slow, bad, twin]
    assert [each.is_dominated(points) for each in points] == [False, False, True, True, False]


def test_the_balanced_choice_is_the_fastest_that_is_nearly_the_best() -> None:
    best, balanced, fastest = point(0.900, 50), point(0.895, 20), point(0.700, 5)
    assert choose([fastest, best, point(0.889, 10), balanced]) == {
        "best": best,
        "balanced": balanced,
        "fastest": fastest,
    }
    assert choose([best, point(0.8, 60)]) == {"best": best}


def test_documents_that_do_not_fit_are_read_in_both_ways(tmp_path: Path) -> None:
    """The answer stands at the end of a long document."""
    text = "The weather was mild and the market was open on that day. " * 12
    rows = [json.loads(line) for line in capitals(tmp_path / "judged.jsonl", (1,), 12).read_text().splitlines()]
    file = jsonl(
        tmp_path / "judged.jsonl", [row | {"documents": [text + each for each in row["documents"]]} for row in rows]
    )
    found = reranker(
        *("tune", file, "--precision", "int8", "--window", 64, "--seconds", 120, "--json"),
        **FIXED,
    )
    assert found.exit_code == 0, found.stderr
    figures = json.loads(found.stdout)
    assert (figures["queries"], figures["of"], figures["left_out"]) == (12, 12, {})
    quality = {
        row["long_documents"]: row["ndcg@10"]["mean"] for row in figures["points"][::-1] if row["fusion"] == "off"
    }
    assert quality["chunk_max"] > quality["truncate"]
    assert {row["window"] for row in figures["points"]} == {64}
    best = figures["chosen"]["best"]
    assert not best["dominated"]
    assert set(best["settings"]) <= set(environment_names())
    assert best["settings"].items() >= {"RERANKER_PRECISION": "int8", "RERANKER_MAX_LENGTH": "64"}.items()
    assert best == figures["points"][0]


def test_a_longer_window_is_not_tried_if_all_documents_fit(tmp_path: Path) -> None:
    file = capitals(tmp_path / "judged.jsonl", (1,), 12)
    found = reranker(
        *("tune", file, "--model", "embedded", "--precision", "int8", "--seconds", 120),
        **FIXED,
    )
    assert found.exit_code == 0, found.stderr
    assert found.stderr.count("embedded, int8") == 1
    assert "RERANKER_MODEL=embedded RERANKER_PRECISION=int8 RERANKER_FUSION=off" in found.stdout
    rows = [line for line in found.stdout.splitlines() if line.startswith("│")]
    assert len({len(row) for row in rows}) == 1


def test_without_enough_time_the_reason_is_given(tmp_path: Path) -> None:
    texts = [f"{capital} is the capital of {country}. " * 60 for country, capital in CAPITALS.items()]
    row = {"query": "What is the capital of France?", "documents": texts, "qrels": {"0": 1}}
    file = jsonl(tmp_path / "judged.jsonl", [row | {"qid": qid} for qid in range(60)])
    found = reranker("tune", file, "--precision", "int8", "--window", 512, "--seconds", 1, **FIXED)
    assert (found.exit_code, "increase --seconds or reduce --depth" in found.stderr) == (1, True), found.stderr


def test_an_unknown_precision_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    found = reranker("tune", capitals(tmp_path / "judged.jsonl"), "--precision", "int3")
    assert (found.exit_code, "precision='int3' is not valid" in found.stderr) == (1, True), found.stderr

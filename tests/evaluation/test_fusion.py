"""`reranker evaluate --fusion`: the best weight for other evidence, and how reliable its gain is."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from app.evaluation.fusion import find_fusion
from app.evaluation.topic import Topic
from tests.conftest import Serve
from tests.evaluation.test_command import ROWS, evaluate, jsonl


def topics(relevant: int, count: int = 12) -> list[Topic]:
    """Queries with three documents. The words of the first one are those of the query."""
    texts = {"0": "the moon causes tides", "1": "bread and butter", "2": "stock markets"}
    return [Topic(str(qid), "what causes tides", texts, {str(relevant): 1}) for qid in range(count)]


def logits(values: list[float], count: int = 12) -> dict[str, list[float]]:
    return {str(qid): values for qid in range(count)}


def test_evidence_that_knows_more_than_the_model_is_found() -> None:
    figures = find_fusion(topics(relevant=0), logits([0.0, 0.1, 0.0]), 10)
    assert figures["best"] == {"evidence": "lexical", "weight": 1.2}
    assert figures["trials"][0] == {"evidence": "off", "weight": 0, "ndcg": pytest.approx(1 / math.log2(3))}
    assert figures["gain"]["low"] > 0.3


def test_evidence_that_misleads_is_not_used() -> None:
    figures = find_fusion(topics(relevant=2), logits([0.0, 0.0, 1.0]), 10)
    assert figures["best"] == {"evidence": "off", "weight": 0}
    assert figures["gain"] == {"mean": 0, "low": 0, "high": 0}


def test_the_gain_is_measured_on_queries_that_did_not_choose_the_weight() -> None:
    """Words help every other query, and mislead the rest."""
    mixed = [each for pair in zip(topics(relevant=0), topics(relevant=1), strict=True) for each in pair][:12]
    mixed = [Topic(str(qid), each.query, each.documents, each.qrels) for qid, each in enumerate(mixed)]
    figures = find_fusion(mixed, logits([0.0, 0.1, 0.0]), 10)
    assert figures["gain"]["mean"] < 0


async def test_the_report_names_the_settings(serve: Serve, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [row | {"qid": f"{row['qid']}-{copy}"} for row in ROWS for copy in range(3)]
    file = jsonl(tmp_path / "rows.jsonl", rows)
    # The setting must not change the model's own order.
    async with serve(fusion="order", fusion_weight=100) as http:
        options = (file, "--fusion", "--url", http.base_url)
        printed = await asyncio.to_thread(evaluate, *options)
        figures = json.loads((await asyncio.to_thread(evaluate, *options, "--json")).stdout)
    assert printed.exit_code == 0, printed.stderr
    assert "RERANKER_FUSION=off" in printed.stdout
    assert figures["fusion"]["best"]["evidence"] == "off"
    assert figures["measures"]["MRR@10"]["after"]["mean"] == 1

"""A sample of the requests, written for the evaluation."""

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from httpx import AsyncClient

from app.environment import load_settings
from app.errors import StartupError
from app.evaluation.collection import judged, read_collection
from app.evaluation.lines import UnusableCollection
from tests.conftest import Serve, until

EMAIL = re.compile(r"\b[\w.+-]{1,64}@[\w.-]+")


async def ask(client: AsyncClient, query: str = "moon", *documents: Any) -> None:
    answer = await client.post("/rerank", json={"query": query, "documents": documents or ["the moon", "bread"]})
    assert answer.status_code == 200


def count(serve: Serve, result: str) -> float:
    return serve.service.metrics.registry.get_sample_value("reranker_sample_requests_total", {"result": result}) or 0.0


async def test_an_operator_adds_grades_and_evaluates_the_sample(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "sample.jsonl"
    async with serve(sample_file=file, sample_share=1) as client:
        await ask(client)
        await ask(client, "tides", "a", "b", "c")
    with pytest.raises(UnusableCollection, match="no query has a relevant document"):
        judged(read_collection(file), file)
    file.write_text(file.read_text().replace("[null, null]", "[1, null]"))
    topics = read_collection(file)
    assert [(topic.query, [*topic.documents.values()], topic.qrels) for topic in topics] == [
        ("moon", ["the moon", "bread"], {"0": 1}),
        ("tides", ["a", "b", "c"], {}),
    ]
    assert judged(topics, file) == topics[:1]


async def test_ids_and_metadata_are_not_written_and_matches_are_replaced(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "sample.jsonl"
    async with serve(sample_file=file, sample_share=1, sample_redact=EMAIL) as client:
        document = {"id": "patient-7", "text": "write to ann@example.com", "metadata": {"name": "Ann"}}
        await ask(client, "mail of bob@example.com", document, "b")
    row = json.loads(file.read_text())
    assert row | {"qid": ""} == {
        "qid": "",
        "query": "mail of [redacted]",
        "documents": ["write to [redacted]", "b"],
        "qrels": [None, None],
    }
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_nothing_is_written_unless_a_file_is_configured(serve: Serve, tmp_path: Path) -> None:
    async with serve(sample_share=1) as client:
        await ask(client)
    assert count(serve, "written") == 0
    file = tmp_path / "sample.jsonl"
    async with serve(sample_share=0, sample_file=file) as client:
        await ask(client)
    assert not file.exists()


async def test_a_full_file_stays_as_it_is_until_it_is_moved_away(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "sample.jsonl"
    async with serve(sample_file=file, sample_share=1, sample_max_bytes=1024) as client:
        for number in range(20):
            await ask(client, f"query {number}")
        await until(lambda: count(serve, "written") + count(serve, "full") + count(serve, "dropped") == 20)
        size = file.stat().st_size
        assert 0 < size <= 1024
        assert json.loads(file.read_text().splitlines()[0])["query"] == "query 0"
        assert caplog.text.count("RERANKER_SAMPLE_MAX_BYTES") == 1
        file.rename(tmp_path / "old.jsonl")
        await ask(client, "another")
        await until(file.exists)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
async def test_a_full_disk_is_counted_and_logged_once(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(sample_file=Path("/dev/full"), sample_share=1) as client:
        for _ in range(3):
            await ask(client)
        await until(lambda: count(serve, "failed") == 3)
    assert caplog.text.count("No space left on device") == 1


async def test_pairs_without_a_common_query_are_not_written(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "sample.jsonl"
    async with serve(sample_file=file, sample_share=1) as client:
        await client.post("/score", json={"text_1": ["moon", "sea"], "text_2": ["the moon", "bread"]})
    assert not file.exists()


def test_an_expression_that_is_not_valid_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANKER_SAMPLE_REDACT", "(")
    with pytest.raises(StartupError, match=r"RERANKER_SAMPLE_REDACT='\(' is not valid"):
        load_settings()

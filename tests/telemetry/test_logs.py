"""What the log contains, what it never contains, and that clients cannot forge lines."""

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import ValidationError

from app.config import Settings
from app.environment import explain
from app.errors import StartupError
from app.serving.shared_cache import SharedCache
from app.telemetry.logs import configure_logging
from app.telemetry.metrics import Metrics
from tests.conftest import Serve, free_port
from tests.fakes import FakeEngine

BODY = {"query": "private question", "documents": ["private passage", "of tides"]}
CONSOLE_LINE = re.compile(r"[\d-]+ [\d:,]+ [A-Z]+ +[\w.]+: ")

Read = Callable[[], list[str]]


@pytest.fixture
def read(capsys: pytest.CaptureFixture[str]) -> Read:
    """The lines logged since the last call. Needs `configure_logging` first."""

    def lines() -> list[str]:
        return capsys.readouterr().err.splitlines()

    return lines


async def test_a_request_is_one_log_line_with_all_its_fields(serve: Serve, read: Read) -> None:
    async with serve() as client:
        configure_logging("info")
        response = await client.post("/rerank", json=BODY | {"user": "team a"}, headers={"x-request-id": "my-id"})
        assert response.status_code == 200
        [line] = read()
    assert CONSOLE_LINE.match(line)
    assert re.search(
        r" app\.access: POST /rerank status=200 ms=\d+\.\d id=my-id user=\"team a\" documents=2 cached=0 tokens=8 "
        r"queue_ms=[\d.]+ inference_ms=[\d.]+$",
        line,
    )


async def test_a_path_cannot_add_log_fields_and_is_shortened(serve: Serve, read: Read) -> None:
    async with serve() as client:
        configure_logging("info")
        await client.post(f"/x%20status=200%20id=mine/{'y' * 5000}")
        [line] = read()
    assert line.count(" status=") == line.count(" id=") == 1
    assert len(line) < 500


async def test_json_logs_have_one_key_per_field(serve: Serve, read: Read) -> None:
    async with serve(max_body_bytes=1024) as client:
        configure_logging("info", "json")
        await client.post("/rerank", json=BODY, headers={"x-request-id": "first"})
        await client.post("/rerank", json={"query": "", "documents": ["a"]})
        await client.post("/rerank", json=BODY | {"query": "x" * 1024})
        ranked, invalid, large = map(json.loads, read())
    assert (ranked["method"], ranked["path"], ranked["status"], ranked["id"]) == ("POST", "/rerank", 200, "first")
    assert (ranked["level"], ranked["logger"]) == ("INFO", "app.access")
    assert (ranked["documents"], ranked["cached"], ranked["tokens"]) == (2, 0, 8)
    assert all(isinstance(ranked[name], float) for name in ("ms", "queue_ms", "inference_ms"))
    assert re.match(r"\d{4}-\d\d-\d\dT.*\+00:00$", ranked["time"])
    assert (invalid["status"], invalid["error"], invalid["documents"]) == (422, "invalid_request", 1)
    assert (large["status"], large["error"]) == (413, "too_large")


@pytest.mark.parametrize("form", ["console", "json"])
async def test_every_line_of_a_request_has_its_id(
    serve: Serve, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, read: Read, form: str
) -> None:
    async with serve() as client:
        configure_logging("info", form)
        monkeypatch.setattr(engine, "encode", lambda *_: 1 / 0)
        await client.post("/rerank", json=BODY, headers={"x-request-id": "find-me"})
        lines = [line for line in read() if not line.startswith("  ")]
    assert len(lines) == 2
    assert all("find-me" in line for line in lines)


@pytest.mark.parametrize("form", ["console", "json"])
async def test_client_input_cannot_forge_a_log_line(serve: Serve, engine: FakeEngine, read: Read, form: str) -> None:
    forged = "2026-01-01 00:00:00,000 ERROR   app: forged\x1b[31m\u2028\x85"
    async with serve() as client:
        configure_logging("debug", form)
        await client.get(f"/x%0A{quote(forged)}")
        await client.post("/rerank", json=BODY | {"user": f"u\n{forged}", "model": f"m\r\n{forged}"})
        engine.failure = RuntimeError(f"no\n{forged}")
        await client.post("/rerank", json=BODY | {"query": "another"})
        text = "\n".join(read())
    assert text.count("forged") >= 4
    assert not re.search(r"^2026-01-01", text, re.MULTILINE)
    assert all(char.isprintable() or char == "\n" for char in text)
    if form == "json":
        assert all("time" in json.loads(line) for line in text.split("\n"))


async def test_texts_are_logged_only_if_the_setting_is_on(serve: Serve, engine: FakeEngine, read: Read) -> None:
    async def send_all(client: Any) -> None:
        for body in (
            BODY,
            BODY | {"query": "private " * 1000},
            BODY | {"top_k": "private"},
            BODY | {"documents": ["private"] * 20_000},
            BODY | {"timeout_ms": -1},
        ):
            await client.post("/rerank", json=body)
        engine.failure = RuntimeError("failed")
        await client.post("/rerank", json=BODY | {"query": "private other"})
        await client.post("/score", json={"text_1": [], "text_2": []})

    async with serve() as client:
        configure_logging("debug")
        await send_all(client)
        lines = read()
        assert sum("app.access" in line for line in lines) == 7
        assert "private" not in "\n".join(lines)
    engine.failure = None
    async with serve(log_texts=True) as client:
        configure_logging("info")
        read()
        await send_all(client)
        lines = read()
    assert 'query="private question"' in lines[0]
    assert all(len(line) < 500 for line in lines)
    assert "private passage" not in "\n".join(lines)


async def test_the_log_warns_that_it_contains_texts(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    for asked in (False, True):
        caplog.clear()
        async with serve(log_texts=asked):
            pass
        assert ("RERANKER_LOG_TEXTS" in caplog.text) is asked


async def test_keys_are_never_logged(serve: Serve, read: Read) -> None:
    async with serve(api_keys="right-secret") as client:
        configure_logging("debug")
        for headers in (
            {"Authorization": "Bearer right-secret"},
            {"Authorization": "Bearer wrong-secret"},
            {"X-API-Key": "wrong-secret"},
            {"Authorization": "wrong-secret"},
        ):
            await client.post("/rerank?key=query-secret", json=BODY, headers=headers)
        lines = read()
    assert [line.count("error=unauthorized") for line in lines] == [0, 1, 1, 1]
    assert "secret" not in "\n".join(lines)


async def test_the_password_of_redis_is_never_logged(serve: Serve, read: Read) -> None:
    url = f"redis://user-secret:pass-secret@127.0.0.1:{free_port()}"
    configure_logging("debug")
    async with serve(cache_url=url) as client:
        assert (await client.post("/rerank", json=BODY)).status_code == 200
        log = "\n".join(read())
        assert "does not answer" in log
        assert "secret" not in log
        assert "secret" not in repr(serve.settings)


@pytest.mark.parametrize("url", ["redis://:sec/ret@localhost", "http://:secret@localhost", "redis://:secret@h:port"])
def test_an_invalid_redis_url_is_rejected_without_showing_its_password(url: str) -> None:
    with pytest.raises(StartupError, match="RERANKER_CACHE_URL is not valid") as caught:
        SharedCache(url, 1, Metrics())
    assert "sec" not in str(caught.value)


@pytest.mark.parametrize("name", ["RERANKER_API_KEYS", "RERANKER_CACHE_URL"])
def test_an_invalid_secret_is_named_but_not_shown(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({name: ["secret"], "RERANKER_PORT": "web"})
    first, second = sorted(explain(caught.value.errors()))
    assert first.startswith(f"{name} is not valid: ")
    assert second.startswith("RERANKER_PORT='web' is not valid: ")
    assert "secret" not in first


async def test_the_log_of_a_failed_batch_has_no_request_id(serve: Serve, engine: FakeEngine, read: Read) -> None:
    """One batch serves several requests."""
    async with serve() as client:
        configure_logging("info")
        engine.failure = RuntimeError("failed")
        await client.post("/rerank", json=BODY, headers={"x-request-id": "one-of-them"})
        named = {line.split(": ")[0].split()[-1]: "one-of-them" in line for line in read() if CONSOLE_LINE.match(line)}
    assert named == {"app.serving.batcher": False, "app.access": True}

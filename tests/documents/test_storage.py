"""The routes that store documents, over real HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from app.errors import StartupError
from tests.conftest import Serve, until

LINES = {"Content-Type": "application/x-ndjson"}
DOCUMENT = {"id": "a", "text": "tides", "metadata": {"page": 3}, "score": 1.5}


def line(document: Any) -> bytes:
    return json.dumps(document).encode() + b"\n"


async def put(client: httpx.AsyncClient, *documents: Any, collection: str = "c", **options: Any) -> httpx.Response:
    headers = options.pop("headers", {})
    body = {"collection": collection, "documents": documents} | options
    return await client.put("/v1/documents", json=body, headers=headers)


async def put_lines(client: httpx.AsyncClient, content: Any, **params: Any) -> httpx.Response:
    return await client.put("/v1/documents", params={"collection": "c"} | params, content=content, headers=LINES)


async def get(client: httpx.AsyncClient, name: str, collection: str = "c", **headers: str) -> httpx.Response:
    return await client.get(f"/v1/documents/{quote(name, safe='')}", params={"collection": collection}, headers=headers)


async def held(client: httpx.AsyncClient, names: Iterable[str]) -> str:
    """Those of the one-letter names that the store has."""
    return "".join([name for name in names if (await get(client, name)).status_code == 200])


@pytest.fixture(params=["memory", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory" if request.param == "memory" else str(tmp_path / "folder" / "documents.sqlite")


async def test_documents_are_stored_replaced_and_deleted(serve: Serve, place: str) -> None:
    async with serve(documents=place) as client:
        stored = await put(client, DOCUMENT, {"id": "b", "text": "bread"})
        assert stored.json() == {
            "collection": "c", "stored": 2, "replaced": 0, "refused": 0, "evicted": 0, "errors": [],
        }  # fmt: skip
        assert (await get(client, "a")).json() == {"collection": "c", "id": "a", "document": DOCUMENT}
        again = (
            await put(client, {"id": "a", "text": "new"}, {"id": "d", "text": "1"}, {"id": "d", "text": "2"})
        ).json()
        assert (again["stored"], again["replaced"]) == (1, 2)
        assert (await get(client, "a")).json()["document"] == {"id": "a", "text": "new"}
        assert (await get(client, "d")).json()["document"]["text"] == "2"
        for count in (1, 0):
            deleted = await client.delete("/v1/documents/a", params={"collection": "c"})
            assert deleted.json() == {"collection": "c", "deleted": count}
        gone = await get(client, "a")
        assert (gone.status_code, gone.json()["message"]) == (404, 'There is no document "a" in the collection "c"')
        await put(client, DOCUMENT, collection="other")
        assert (await client.delete("/v1/documents", params={"collection": "c"})).json()["deleted"] == 2
        assert await held(client, "abd") == ""
        assert (await get(client, "a", "other")).status_code == 200


@pytest.mark.parametrize(
    "name", ["a/b", "https://example.com/a?b=1#c", "/a//b/", "ä ö", "100%", "a b\n", "7", "..a", "'"]
)
async def test_every_id_can_be_read_and_deleted(serve: Serve, name: str) -> None:
    async with serve(documents="memory", root_path="/prefix") as client:
        await put(client, {"id": name, "text": "tides"})
        assert (await get(client, name)).json()["id"] == name
        deleted = await client.delete(f"/v1/documents/{quote(name, safe='')}", params={"collection": "c"})
        assert deleted.json()["deleted"] == 1


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("tides", "documents[1]: must have an 'id'"),
        ({"text": "tides"}, "documents[1]: must have an 'id'"),
        ({"id": 1.5, "text": "tides"}, "documents[1]: must have an 'id'"),
        ({"id": "", "text": "tides"}, "documents[1]: must have an 'id'"),
        ({"id": "x" * 513, "text": "tides"}, "documents[1]: must have an 'id'"),
        ({"id": "//", "text": "tides"}, "documents[1]: must have an 'id'"),
        ({"id": "..", "text": "tides"}, "documents[1]: must have an 'id'"),
        ({"id": "b", "metadata": "tides", "title": None}, "documents[1]: has no 'text'"),
        ({"id": "b", "image": "https://example.com"}, "documents[1]: must be a text: 'image' is not supported"),
        (5, "documents[1]: must be a string or an object"),
    ],
)
async def test_a_json_body_is_stored_as_a_whole_or_not_at_all(serve: Serve, document: Any, problem: str) -> None:
    async with serve(documents="memory") as client:
        answer = await put(client, DOCUMENT, document)
        assert answer.status_code == 422
        assert answer.json()["message"].startswith(problem)
        assert (await get(client, "a")).status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"documents": [DOCUMENT]}, 422, "collection: field required"),
        ({"collection": "", "documents": [DOCUMENT]}, 422, "collection: string should have at least 1 character"),
        ({"collection": "c", "documents": []}, 422, "documents: at least one is required"),
        ({"collection": "c", "documents": [DOCUMENT], "ttl": 5}, 422, "ttl: extra inputs are not permitted"),
        ({"collection": "c", "documents": [DOCUMENT], "ttl_seconds": 0}, 422, "ttl_seconds: input should be greater"),
        ({"collection": "c", "documents": [DOCUMENT | {"text": "x" * 51}]}, 413, "documents[0]: at most 50 characters"),
        ({"collection": "c", "documents": [DOCUMENT | {"metadata": "x" * 1500}]}, 413, "documents[0]: needs 17"),
        ({"collection": "c", "documents": [DOCUMENT | {"metadata": "x" * 9000}]}, 413, "body: at most 4000 bytes"),
    ],
)
async def test_errors_name_the_field_and_the_limit(serve: Serve, body: Any, status: int, message: str) -> None:
    async with serve(documents="memory", max_text_chars=50, max_body_bytes=4000, documents_max_bytes=1024) as client:
        answer = await client.put("/v1/documents", json=body)
        assert (answer.status_code, answer.json()["message"][: len(message)]) == (status, message)


async def test_lines_are_stored_and_counted(serve: Serve, place: str) -> None:
    lines = b"".join(line({"id": f"d{number}", "text": f"tides {number}"}) for number in range(1000))
    async with serve(documents=place, max_body_bytes=1024) as client:  # the limit is that of a line
        answer = await put_lines(
            client, b"\n \r\n" + lines + b'{"id": "d5", "text": "\xc3\xa4"}\r\n{"id": "last", "text": "end"}'
        )
        assert answer.json() == {
            "collection": "c", "stored": 1001, "replaced": 1, "refused": 0, "evicted": 0, "errors": [],
        }  # fmt: skip
        assert (await get(client, "d5")).json()["document"]["text"] == "ä"
        assert (await get(client, "last")).status_code == 200
        assert serve.service.bodies.held == 0


async def test_lines_may_arrive_in_pieces_of_any_size(serve: Serve) -> None:
    content = "".join(
        json.dumps({"id": str(n), "text": f"ä€😀 {n}"}, ensure_ascii=False) + "\n" for n in range(20)
    ).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 3):
            yield content[start : start + 3]

    async with serve(documents="memory") as client:
        assert (await put_lines(client, pieces())).json()["stored"] == 20
        assert (await get(client, "19")).json()["document"]["text"] == "ä€😀 19"


HOSTILE = {
    b"{": "is not valid JSON",
    b"tides": "is not valid JSON",
    b'{"id": "x", "text": "\xff"}': "is not valid JSON: not UTF-8",
    b'\xef\xbb\xbf{"id": "x", "text": "tides"}': None,  # the byte order mark of Windows editors
    b'{"id": "x", "text": "tides"} {"id": "y", "text": "tides"}': "is not valid JSON: Extra data",
    b"[" * 100_000: "is not valid JSON: nested too deeply",
    b'{"id": "x", "text": "tides", "n": ' + b"9" * 5000 + b"}": "is not valid JSON: a number has too many digits",
    b"[1]": "must be a string or an object",
    b"null": "must be a string or an object",
    b'"tides"': "must have an 'id'",
    b'{"text": "tides"}': "must have an 'id'",
    b'{"id": {"a": 1}, "text": "tides"}': "must have an 'id'",
    b'{"id": "x"}': "has no 'text'",
    b'{"id": "x", "text": ""}': None,
    b'{"id": "x", "text": 5}': "text: input should be a valid string, got 5",
    b'{"id": "x", "text": "' + b"x" * 1001 + b'"}': "at most 1000 characters are accepted",
    b'{"id": "x", "text": "y", "pad": "' + b"x" * 200_001 + b'"}': "at most 200000 bytes are accepted in a line",
    b'{"id": "x", "text": "\\ud800", "metadata": ["\\udfff"]}': None,
    b'{"id": "x", "text": "a\\u0000b", "__proto__": {}, "_sent": 1}': None,
}


async def test_hostile_lines_are_refused_with_number_and_reason(serve: Serve) -> None:
    good = line({"id": "good", "text": "tides"})
    content = b"".join(good + hostile + b"\n" for hostile in HOSTILE)
    async with serve(documents="memory", max_text_chars=1000, max_body_bytes=200_000) as client:
        answer = (await put_lines(client, content)).json()
        expected = {2 * place + 2: reason for place, reason in enumerate(HOSTILE.values()) if reason}
        errors = {error["line"]: error["reason"] for error in answer["errors"]}
        assert list(errors) == list(expected)
        assert [number for number, reason in errors.items() if expected[number] not in reason] == []
        assert answer["refused"] == len(expected)
        assert answer["stored"] == 2  # good, and x
        assert answer["stored"] + answer["replaced"] + answer["refused"] == 2 * len(HOSTILE)
        assert (await get(client, "x")).json()["document"]["text"] == "a\0b"


async def test_reasons_are_listed_up_to_a_number_and_counted_beyond(serve: Serve) -> None:
    async with serve(documents="memory") as client:
        answer = (await put_lines(client, b"?\n" * 2500 + line(DOCUMENT))).json()
        assert (answer["refused"], len(answer["errors"]), answer["stored"]) == (2500, 1000, 1)
        assert answer["errors"][-1]["line"] == 1000


@pytest.mark.parametrize("params", [{}, {"collection": ""}, {"collection": "c", "ttl_seconds": "-1"}])
async def test_lines_need_a_collection_and_a_valid_ttl(serve: Serve, params: dict[str, str]) -> None:
    async with serve(documents="memory") as client:
        answer = await client.put("/v1/documents", params=params, content=line(DOCUMENT), headers=LINES)
        assert answer.status_code == 422
        assert answer.json()["message"].split(":")[0] in ("collection", "ttl_seconds")


async def test_documents_expire(serve: Serve, place: str) -> None:
    async with serve(documents=place) as client:
        await put(client, {"id": "a", "text": "1"}, {"id": "b", "text": "2"}, ttl_seconds=0.2)
        await put_lines(client, line({"id": "e", "text": "5"}), ttl_seconds=0.2)
        await put(client, {"id": "b", "text": "2"}, {"id": "d", "text": "4"})  # without an end
        while "a" in (known := await held(client, "abde")) or "e" in known:  # noqa: ASYNC110 (no event)
            await asyncio.sleep(0.05)
        assert known == "bd"
        used = serve.service.documents.used_bytes  # type: ignore[union-attr]
        await put(client, {"id": "b", "text": "2"})
        assert serve.service.documents.used_bytes < used  # type: ignore[union-attr]


async def test_a_key_sees_only_its_own_documents(serve: Serve, place: str) -> None:
    first, second = {"X-API-Key": "first"}, {"Authorization": "Bearer second"}
    async with serve(documents=place, api_keys="first,second") as client:
        await put(client, DOCUMENT, headers=first)
        assert (await get(client, "a", **first)).status_code == 200
        assert (await get(client, "a", **second)).status_code == 404
        body = {"query": "tides", "collection": "c", "document_ids": ["a"]}
        assert (await client.post("/rerank", json=body, headers=second)).status_code == 404
        await put(client, {"id": "a", "text": "of the second"}, headers=second)
        assert (await client.delete("/v1/documents?collection=c", headers=second)).json()["deleted"] == 1
        assert (await get(client, "a", **first)).json()["document"] == DOCUMENT
        for method, path in (("PUT", ""), ("DELETE", ""), ("GET", "/a"), ("DELETE", "/a")):
            nobody = await client.request(method, f"/v1/documents{path}?collection=c", headers=LINES)
            assert nobody.status_code == 401


async def test_the_least_recently_used_documents_are_evicted(
    serve: Serve, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.documents.sqlite.TOUCH_SECONDS", 0)
    async with serve(documents=place, documents_max_bytes=1300) as client:
        for name in "abcd":  # of about 300 bytes each
            assert (await put(client, {"id": name, "text": "x" * 70})).json()["evicted"] == 0
        await get(client, "a")
        assert (await put(client, {"id": "e", "text": "x" * 70})).json()["evicted"] == 1
        assert await held(client, "abcde") == "acde"
        await put(client, {"id": "c", "text": "again" + "x" * 70})
        assert (await put_lines(client, b"".join(line({"id": n, "text": "x" * 70}) for n in "fg"))).json()[
            "evicted"
        ] == 2
        assert await held(client, "abcdefg") in ("cefg", "acfg", "cdfg")
        metrics = (await client.get("/metrics")).text
        assert "reranker_evicted_documents_total 3.0" in metrics
        size = next(float(row.split()[1]) for row in metrics.splitlines() if row.startswith("reranker_stored_bytes "))
        assert 1000 < size <= 1300


async def test_a_file_keeps_documents_over_restarts(serve: Serve, tmp_path: Path) -> None:
    file = str(tmp_path / "documents.sqlite")
    async with serve(documents=file) as client:
        await put(client, DOCUMENT)
    async with serve(documents=file) as client:
        assert (await get(client, "a")).json()["document"] == DOCUMENT
        assert (await put(client, DOCUMENT)).json()["replaced"] == 1


async def test_a_file_that_is_none_of_ours_stops_the_start(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "documents.sqlite"
    file.write_text("something else, which is long enough to be no database" * 50)
    async with serve(documents=str(file)) as client:
        assert (await client.get("/health")).json()["status"] == "failed"
        assert (await put(client, DOCUMENT)).status_code == 503
    assert f"Cannot start: RERANKER_DOCUMENTS={file} cannot be opened: file is not a database" in caplog.text


async def test_requests_of_a_key_are_limited(serve: Serve) -> None:
    async with serve(documents="memory", key_per_minute=1, key_burst=2) as client:
        assert (await put(client, DOCUMENT)).status_code == 200
        assert (await get(client, "a")).status_code == 200
        for limited in (await put_lines(client, line(DOCUMENT)), await get(client, "a"), await put(client, DOCUMENT)):
            assert limited.status_code == 429
            assert "RERANKER_KEY_REQUESTS_PER_MINUTE" in limited.json()["message"]


UNFINISHED = b"".join(line({"id": str(number), "text": "tides"}) for number in range(300)) + b'{"id": "cut", "te'


async def begin(client: httpx.AsyncClient, *headers: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send 300 lines and a part of another one, of a longer body."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    lines = ("PUT /v1/documents?collection=c HTTP/1.1", "Host: a", "Content-Type: application/jsonl", *headers)
    head = "\r\n".join([*lines, f"Content-Length: {len(UNFINISHED) + 100}", "", ""])
    writer.write(head.encode() + UNFINISHED)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize(
    ("settings", "header", "status", "message"),
    [
        ({"body_timeout": 0.3}, "A: b", 408, "body: line 301 did not arrive within 0.3 s (RERANKER_BODY_TIMEOUT)"),
        ({}, "X-Request-Timeout-Ms: 900", 504, "deadline of 0.9 s. Before that, 300 lines were stored and 0 refused"),
        ({"request_timeout": 0.9}, "A: b", 504, "deadline of 0.9 s. Before that, 300 lines were stored"),
    ],
)
async def test_a_body_of_lines_that_stalls_is_rejected(
    serve: Serve, settings: dict[str, Any], header: str, status: int, message: str
) -> None:
    async with serve(documents="memory", **settings) as client:
        reader, writer = await begin(client, header)
        answer = (await reader.readuntil(b"}}")).decode()
        assert answer.startswith(f"HTTP/1.1 {status} ")
        assert message in answer
        writer.close()
        assert serve.service.bodies.held == 0


async def test_a_client_that_leaves_while_it_sends_leaves_whole_documents(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(documents="memory", key_max_parallel=1) as client:
        _, writer = await begin(client)
        await until(lambda: serve.service.documents.used_bytes > 0)  # type: ignore[union-attr]
        assert (await get(client, "0")).status_code == 429  # the other one is still running
        writer.close()
        while (answer := await get(client, "0")).status_code == 429:  # noqa: ASYNC110 (no event)
            await asyncio.sleep(0.01)
        assert answer.status_code == 200
        assert (await get(client, "cut")).status_code == 404
        assert serve.service.bodies.held == 0
    assert "Unexpected error" not in caplog.text


@pytest.mark.parametrize(("path", "methods"), [("", "DELETE, PUT"), ("/a", "DELETE, GET")])
async def test_other_methods_are_refused_with_those_that_exist(serve: Serve, path: str, methods: str) -> None:
    async with serve(documents="memory") as client:
        for method in ("POST", "PATCH", "OPTIONS"):
            answer = await client.request(method, f"/v1/documents{path}?collection=c")
            assert (answer.status_code, answer.headers["allow"]) == (405, methods)


async def test_the_documented_example_runs(serve: Serve) -> None:
    page = (Path(__file__).parents[2] / "docs" / "documents.md").read_text()
    block = page.split("```bash\n")[1].split("```")[0]
    answer = page.split("The first answer is `")[1].split("`")[0]
    async with serve(documents="memory") as client:
        commands = block.replace("http://127.0.0.1:8000", str(client.base_url).rstrip("/"))
        shell = await asyncio.create_subprocess_shell(f"set -e\n{commands}", stdout=asyncio.subprocess.PIPE)
        output = (await shell.communicate())[0].decode()
    assert output.startswith(answer)
    ranking = json.loads(output.removeprefix(answer))
    assert {result["id"]: result["index"] for result in ranking["results"]} == {"mars": 0, "saturn": 1}
    assert ranking["missing"] == ["pluto"]


@pytest.mark.parametrize("value", ["memroy", "documents.sqlite", "http://a/b", "redis:/a"])
def test_a_mistyped_setting_stops_the_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    from app.environment import load_settings

    monkeypatch.setenv("RERANKER_DOCUMENTS", value)
    with pytest.raises(StartupError, match="RERANKER_DOCUMENTS is not valid: must be memory, a path with a slash"):
        load_settings()


async def test_a_stop_waits_for_an_upload(serve: Serve) -> None:
    async with serve(documents="memory") as client:
        proceed = asyncio.Event()

        async def lines() -> AsyncIterator[bytes]:
            yield line(DOCUMENT)
            await proceed.wait()
            yield line({"id": "b", "text": "bread"})

        upload = asyncio.create_task(put_lines(client, lines()))
        await until(lambda: serve.service.running == 1)
        await client.get("/health")
        assert serve.service.running == 1
        proceed.set()
        assert (await upload).json()["stored"] == 2
        assert serve.service.running == 0

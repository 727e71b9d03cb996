"""Authentication by API key."""

import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.config import Settings
from app.environment import load_settings
from app.errors import StartupError
from tests.conftest import Serve

BODY = {"query": "tides", "documents": ["tides"]}
SECRET = "first-key"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {SECRET}"},
        {"Authorization": f"bearer  {SECRET}"},
        {"Authorization": SECRET},
        {"X-API-Key": SECRET},
        {"api-key": SECRET},
        {"X-Goog-Api-Key": SECRET},
        {"Authorization": "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=c", "X-API-Key": SECRET},
        {"Authorization": "Bearer wrong", "Api-Key": "second-key"},
        {"X-API-Key": "second-key"},
        {"Authorization": "Bearer wrong", "X-API-Key": SECRET},
        {"Authorization": "Bearer schlüssel mit leerzeichen".encode()},
    ],
)
async def test_a_known_key_is_accepted(serve: Serve, headers: dict[str, Any]) -> None:
    async with serve(api_keys=f"{SECRET}, second-key,schlüssel mit leerzeichen") as client:
        assert (await client.post("/rerank", json=BODY, headers=headers)).status_code == 200
        assert (await client.get("/info", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {SECRET}"},
        {"Authorization": f"AWS4-HMAC-SHA256 {SECRET}"},
        {"Authorization": f"Bearer {SECRET}x"},
        {"Authorization": f"Bearer {SECRET}, second-key"},
        {"X-API-Key": ""},
        {"Api-Key": "wrong"},
        {"X-API-Key": "schlüssel".encode()},
    ],
)
async def test_a_missing_or_unknown_key_is_rejected(serve: Serve, headers: dict[str, Any]) -> None:
    async with serve(api_keys=f"{SECRET},second-key") as client:
        for method, path in (("POST", "/rerank"), ("POST", "/score"), ("GET", "/info"), ("GET", "/v1/models")):
            response = await client.request(method, path, json=BODY, headers=headers)
            assert response.status_code == 401, path
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert "API key" in response.json()["message"]
            assert response.json()["error"]["type"] == "unauthorized"
            assert SECRET not in response.text
        rejected = serve.service.metrics.registry.get_sample_value(
            "reranker_rejections_total", {"reason": "unauthorized"}
        )
        assert rejected == 4


async def test_probes_need_no_key_and_metrics_only_if_protected(serve: Serve) -> None:
    async with serve(api_keys=SECRET) as client:
        for path in ("/health", "/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200
        schema = (await client.get("/openapi.json")).json()
        assert schema["paths"]["/rerank"]["post"]["security"] == [{"HTTPBearer": []}]
    async with serve(api_keys=SECRET, protect_metrics=True) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/metrics", headers={"X-API-Key": SECRET})).status_code == 200


async def test_a_body_without_a_valid_key_is_not_read(serve: Serve) -> None:
    async def endless() -> object:
        while True:
            yield b"x" * 65536

    async with serve(api_keys=SECRET) as client:
        try:
            response = await client.post("/rerank", content=endless())
            assert response.status_code == 401
        except httpx.TransportError:
            pass  # the server closed the connection during the write
        assert (await client.get("/health")).json()["active"] == 0


def test_keys_can_be_read_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("\ufeffone\n# of team a, revoked\ntwo words\n\n")  # with the byte order mark of Windows editors
    monkeypatch.setenv("RERANKER_API_KEYS", "zero")
    monkeypatch.setenv("RERANKER_API_KEYS_FILE", str(file))
    settings = load_settings()
    assert settings.keys() == ["zero", "one", "two words"]
    assert "zero" not in repr(settings)


@pytest.mark.parametrize("value", [",", " , ,"])
def test_a_variable_without_keys_is_an_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RERANKER_API_KEYS", value)
    with pytest.raises(StartupError, match="RERANKER_API_KEYS has no key"):
        load_settings()


@pytest.mark.parametrize("content", [None, "", " \n", "# one\n", "one # of team a\n"])
def test_a_file_without_keys_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("RERANKER_API_KEYS_FILE", str(file))
    with pytest.raises(StartupError, match="RERANKER_API_KEYS_FILE"):
        load_settings()


@pytest.mark.parametrize(
    ("settings", "level"),
    [({"host": "0.0.0.0"}, logging.WARNING), ({}, logging.INFO), ({"host": "0.0.0.0", "api_keys": "k"}, None)],
)
async def test_the_log_warns_if_authentication_is_off(
    serve: Serve, caplog: pytest.LogCaptureFixture, settings: dict[str, str], level: int | None
) -> None:
    caplog.set_level("INFO")
    async with serve(**settings):
        pass
    found = [record for record in caplog.records if "No API key is set" in record.message]
    assert [record.levelno for record in found] == ([] if level is None else [level])
    assert all(Settings(**settings).host in record.message for record in found)


async def test_cors_allows_the_configured_origins(serve: Serve) -> None:
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    async with serve(cors_origins="https://a.example, https://b.example", api_keys=SECRET) as client:
        assert (await client.options("/rerank", headers=asked)).headers["access-control-allow-origin"] == asked[
            "Origin"
        ]
        other = await client.options("/rerank", headers=asked | {"Origin": "https://c.example"})
        assert "access-control-allow-origin" not in other.headers
        refused = await client.post("/rerank", json=BODY, headers={"Origin": "https://a.example"})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, asked["Origin"])
    async with serve() as client:
        assert "access-control-allow-origin" not in (await client.options("/rerank", headers=asked)).headers

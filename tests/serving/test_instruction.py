"""Instructions: what a request asks the model to look for."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.config import Settings
from app.engines.load import load_engine
from app.engines.template import Template
from app.errors import StartupError
from tests.api.test_app import indices
from tests.conftest import Serve
from tests.fakes import INFO, FakeEngine
from tests.models import UNMEASURED, export, make_yes_no

BODY: dict[str, Any] = {"query": "tides", "documents": ["moon", "bread", "tides"]}
TEI: dict[str, Any] = {"query": "tides", "texts": ["moon", "bread", "tides"]}


class Instructed(FakeEngine):
    """Its model takes an instruction."""

    def __init__(self) -> None:
        super().__init__()
        template = Template.parse("{instruction}: {query} {document}", "find answers")
        self.info = replace(INFO, template=template)


@pytest.mark.parametrize("name", ["instruction", "instruct"])
async def test_an_instruction_changes_the_scores_and_is_cached_apart(name: str) -> None:
    async with Serve(Instructed())() as client:
        plain = await client.post("/rerank/query", json=BODY)
        asked = await client.post("/rerank/query", json=BODY | {name: "find bread"})
        again = await client.post("/rerank/query", json=BODY | {name: "find bread"})
        own = await client.post("/rerank/query", json=BODY | {name: "find answers"})
    assert (indices(plain), indices(asked), indices(again)) == ([2, 0, 1], [1, 2, 0], [1, 2, 0])
    assert [response.json()["meta"]["cached"] for response in (plain, asked, again, own)] == [0, 0, 3, 3]


async def test_the_setting_applies_unless_the_request_says_otherwise() -> None:
    async with Serve(Instructed())(instruction="find bread") as client:
        default = await client.post("/rerank", json=TEI)
        asked = await client.post("/rerank", json=TEI | {"instruction": "find the moon"})
    assert [rank["index"] for rank in default.json()] == [1, 2, 0]
    assert [rank["index"] for rank in asked.json()] == [0, 2, 1]


async def test_a_model_without_instructions_rejects_one(serve: Serve) -> None:
    async with serve() as client:
        refused = await client.post("/rerank/query", json=BODY | {"instruct": "find bread"})
        accepted = await client.post("/rerank/query", json=BODY | {"instruct": None})
    assert refused.status_code == 422
    assert "instruction: the model fake takes none" in refused.text
    assert accepted.status_code == 200


def test_a_setting_that_leaves_no_room_stops_the_start(tmp_path: Path) -> None:
    export(make_yes_no(tmp_path / "model", 256), tmp_path / "out")
    load = partial(Settings, model=str(tmp_path / "out"), **UNMEASURED)
    assert load_engine(load()).info.instruction
    with pytest.raises(StartupError, match="RERANKER_INSTRUCTION: the template with it has"):
        load_engine(load(instruction="find the moon " * 200))
    with pytest.raises(StartupError, match="RERANKER_MAX_LENGTH: the template has"):
        load_engine(load(max_length=16))


def test_a_setting_that_the_model_cannot_follow_stops_the_start() -> None:
    with pytest.raises(StartupError, match=r"RERANKER_INSTRUCTION='find bread': .* takes none\. Unset it"):
        load_engine(Settings(instruction="find bread", backend="openvino", precision="int8", **UNMEASURED))

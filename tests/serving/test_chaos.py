"""The engine fails at random and clients leave at random: every request gets one correct answer."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from app.errors import OutOfMemory
from app.types import Pair
from tests.conftest import Serve, until
from tests.fakes import NAN, FakeEngine, words
from tests.serving.test_cancellation import idle

REQUESTS = 60
LEFT = "left"
HUGE = "huge"


class UnsteadyEngine(FakeEngine):
    """Each batch has a random fate: fine, slow, failed, or out of memory."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._batch: Sequence[Pair] = ()
        self.failed: set[int] = set()
        """Token ids of all pairs in failed batches."""
        self.fates: Counter[str] = Counter()

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        if not {id(pair) for pair in pairs} <= {id(pair) for pair in self._batch}:  # not a part of the previous batch
            self._batch = pairs
            self._draw_fate()
        try:
            if any(words(HUGE)[0] in pair.ids for pair in pairs):
                raise OutOfMemory("does not fit, however small the batch")
            return super().score(pairs)
        except Exception as error:
            if len(pairs) == 1 or not isinstance(error, OutOfMemory):
                self.failed |= {number for pair in self._batch for number in pair.ids.tolist()}
            raise

    def _draw_fate(self) -> None:
        fate = self._random.choices(["fine", "slow", "failed", "small memory"], [6, 2, 1, 2])[0]
        self.fates[fate] += 1
        self.failure = RuntimeError("the engine broke") if fate == "failed" else None
        self.capacity = self._random.randint(1, 4) if fate == "small memory" else 10**9
        if fate == "slow":
            time.sleep(self._random.random() * 0.01)


def request(number: int, dice: random.Random) -> dict[str, Any]:
    """A body with unique words, so that no two requests share pairs. Some have a document that cannot be scored."""
    documents = [
        f"own{number} " + "tides " * dice.randint(0, 5) + f"text{index}" for index in range(dice.randint(1, 9))
    ]
    if dice.random() < 0.15:
        documents[dice.randrange(len(documents))] += f" {dice.choice([NAN, HUGE])}"
    return {"query": f"tides own{number}", "documents": documents}


async def ask(client: httpx.AsyncClient, body: dict[str, Any], dice: random.Random) -> httpx.Response | str:
    await asyncio.sleep(dice.random() * 0.1)
    try:
        return await client.post("/rerank", json=body, timeout=dice.random() * 0.03 if dice.random() < 0.2 else 30)
    except httpx.TimeoutException:
        return LEFT


def check(engine: UnsteadyEngine, body: dict[str, Any], response: httpx.Response) -> None:
    """Assert that the answer is the right ranking, or an error with a cause."""
    text = " ".join(body["documents"]).split()
    if response.status_code == 200:
        assert not {NAN, HUGE} & set(text)
        shared = [len(set(body["query"].split()) & set(document.split())) for document in body["documents"]]
        order = sorted(range(len(shared)), key=lambda index: (-shared[index], index))
        assert [result["index"] for result in response.json()["results"]] == order
    elif response.status_code == 500:
        assert NAN in text or words(body["query"])[-1] in engine.failed, response.text
        kinds = {"scoring_failed", "out_of_memory"}
        assert response.json()["error"]["type"] in kinds
        assert "engine broke" not in response.text
    else:
        assert response.status_code == 429, response.text
        assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("seed", range(6))
async def test_every_request_gets_one_correct_answer(seed: int) -> None:
    engine, dice = UnsteadyEngine(seed), random.Random(seed)
    serve = Serve(engine)
    async with serve(max_parallel=8, max_queue=30, batch_tokens=64) as client:
        reranker = serve.reranker
        bodies = [request(number, dice) for number in range(REQUESTS)]
        answers = await asyncio.gather(*(ask(client, body, dice) for body in bodies))
        await until(lambda: idle(reranker))
        for body, answer in zip(bodies, answers, strict=True):
            if isinstance(answer, httpx.Response):
                check(engine, body, answer)

        figures = (await client.get("/metrics?format=json")).json()
        seen = Counter("499" if isinstance(answer, str) else str(answer.status_code) for answer in answers)
        counted = Counter(figures["requests"]["by_status"])
        assert counted["499"] <= seen["499"]
        assert all(counted[status] >= count for status, count in seen.items() if status != "499")
        assert seen["200"] > 3
        assert len(engine.fates) > 2
        assert figures["requests"]["disconnected"] == counted["499"]
        rejected = Counter(figures["rejections"])
        assert (rejected["failed"], rejected["queue_full"]) == (counted["500"], counted["429"])

        engine.score = FakeEngine().score  # type: ignore[method-assign]
        assert (await client.post("/rerank", json={"query": "next", "documents": ["next"]})).status_code == 200

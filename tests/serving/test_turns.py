"""Models take turns: which model runs the next batch, and how many batches run at the same time."""

import asyncio

import pytest

from app.serving import turns as module
from app.serving.turns import Line, Turn, Turns


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def serve(line: Line, tokens: int, batches: int, order: list[str], name: str, at_once: int = 1) -> None:
    """Run batches. As the batcher does, wait for the next turn while a batch runs."""
    running: Turn | None = None
    for _ in range(batches):
        waiting = asyncio.create_task(line.take(at_once))
        await settle()
        if running:
            running.end()
        running = await waiting
        order.append(name)
        running.begin(tokens)
    if running:
        running.end()


async def test_two_models_take_turns() -> None:
    turns, order = Turns(), list[str]()
    await asyncio.gather(*(serve(turns.join(), 100, 5, order, name) for name in "ab"))
    assert order == list("ab") * 5


async def test_turns_are_weighted_by_tokens() -> None:
    turns, order = Turns(), list[str]()
    large, small = turns.join(), turns.join()
    await asyncio.gather(serve(large, 400, 3, order, "L"), serve(small, 100, 12, order, "s"))
    first = order[: order.index("L", order.index("L") + 1)]
    assert (first.count("L"), first.count("s")) == (1, 4)


async def test_a_model_that_had_nothing_to_do_does_not_catch_up() -> None:
    turns, order = Turns(), list[str]()
    busy, other = turns.join(), turns.join()
    await serve(busy, 1000, 50, [], "b")
    await asyncio.gather(serve(busy, 100, 4, order, "b"), serve(other, 100, 4, order, "o"))
    assert sorted(order[:4]) == ["b", "b", "o", "o"]


async def test_together_they_run_as_many_batches_as_one_alone() -> None:
    turns = Turns()
    pair, alone = turns.join(), turns.join()
    halves = [await pair.take(2), await pair.take(2)]
    whole = asyncio.create_task(alone.take(1))
    third = asyncio.create_task(pair.take(2))
    halves[0].begin(10)
    halves[0].end()
    await settle()
    assert not whole.done(), "half of the machine is still in use"
    assert not third.done(), "a line that needs all of the machine is not overtaken"
    halves[1].end()
    turn = await whole
    await settle()
    assert not third.done()
    turn.end()
    (await third).end()


async def test_a_cancelled_wait_leaves_no_turn_behind() -> None:
    turns = Turns()
    first, second, third = turns.join(), turns.join(), turns.join()
    turn = await first.take(1)
    waiting, last = asyncio.create_task(second.take(1)), asyncio.create_task(third.take(1))
    await settle()
    turn.end()  # grants the turn to the second, which is cancelled before it runs
    waiting.cancel()
    assert isinstance(await last, Turn)


async def test_the_turns_of_a_closed_line_are_free() -> None:
    turns = Turns()
    broken, other = turns.join(), turns.join()
    await broken.take(1)
    broken.close()
    assert isinstance(await other.take(1), Turn)


async def test_others_do_not_wait_for_a_batch_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.02)
    turns = Turns()
    hung, other = turns.join(), turns.join()
    await hung.take(1)
    again = asyncio.create_task(hung.take(1))
    turn = await other.take(1)
    assert not again.done(), "its own next batch waits for it"
    turn.end()
    await settle()
    assert not again.done()
    again.cancel()

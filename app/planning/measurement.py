"""The speed of a service: requests one after another, and as many as keep it busy."""

import asyncio
from collections.abc import Iterator
from time import perf_counter, time_ns
from typing import NamedTuple

from app.planning.estimate import Speed
from app.planning.texts import Request, Size, make_requests
from reranker_client import AsyncClient

WARM_UP = 3
CLIENTS = 8
FEWEST_ALONE, FEWEST_BUSY = 10, 2 * CLIENTS


class Measurement(NamedTuple):
    """What was measured."""

    speed: Speed
    requests: int
    """Requests that were sent by the clients together."""


async def measure(client: AsyncClient, size: Size, seconds: float) -> Measurement:
    """Measure for about this many seconds, one half for each part. Raises `RerankError`."""
    requests = make_requests(size, time_ns())
    for _ in range(WARM_UP):
        await send(client, next(requests))
    alone: list[float] = []
    until = perf_counter() + seconds / 2
    while perf_counter() < until or len(alone) < FEWEST_ALONE:
        started = perf_counter()
        await send(client, next(requests))
        alone.append(perf_counter() - started)
    ended = await _keep_busy(client, requests, seconds / 2)
    return Measurement(Speed(alone, (len(ended) - 1) / (ended[-1] - ended[0])), len(ended))


async def _keep_busy(client: AsyncClient, requests: Iterator[Request], seconds: float) -> list[float]:
    """The moments at which requests ended while all clients had one in progress, in order."""
    ended: list[float] = []
    until = perf_counter() + seconds

    async def send_one_after_another() -> None:
        while perf_counter() < until or len(ended) < FEWEST_BUSY:
            await send(client, next(requests))
            ended.append(perf_counter())

    try:
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(send_one_after_another())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    # After the last client that began a request, the others are idle: their last requests do not count.
    return ended[: 1 - CLIENTS]


async def send(client: AsyncClient, request: Request) -> None:
    """Raises `RerankError`."""
    await client.rerank(request.query, request.documents, on_overload="error")

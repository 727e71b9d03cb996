"""What runs in the processes of a cluster of Ray: reading the file, and ranking blocks of its rows."""

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from app.bulk.blocks import outcomes_block, rows_block, rows_of
from app.bulk.job import identity_of
from app.bulk.rows import Place, Row, open_source
from app.bulk.run import READ_BYTES, read_rows
from app.bulk.scoring import BadRow, Outcome, Scoring, bad
from app.evaluation.service import own_settings, running

if TYPE_CHECKING:
    from app.api.service import Service


class Rows(Datasource):  # type: ignore[misc] # Ray is an extra
    """The rows of a file after a place, read by one task in their order."""

    def __init__(self, path: Path, max_bytes: int, start: Place) -> None:
        super().__init__()
        self._path, self._max_bytes, self._start = path, max_bytes, start

    def estimate_inmemory_data_size(self) -> int:
        return self._path.stat().st_size

    def get_read_tasks(self, *_: Any, **__: Any) -> list[Any]:
        metadata = BlockMetadata(num_rows=None, size_bytes=READ_BYTES, input_files=None, exec_stats=None)
        return [ReadTask(self._blocks, metadata)]

    def _blocks(self) -> Iterator[Any]:
        rows = open_source(self._path, self._max_bytes).rows(self._start)
        while found := read_rows(rows):
            yield rows_block(found)


class Worker:
    """A process with one engine. Ray calls it with one block after another."""

    def __init__(self, chosen: Mapping[str, Any], options: Mapping[str, Any], kept: Sequence[str]) -> None:
        """`chosen`: settings of the command. The rest comes from the environment of the node."""
        cpus = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 0))
        settings = own_settings({"threads": cpus or None} | dict(chosen), measured=False)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        service = asyncio.run_coroutine_threadsafe(self._start(settings), self._loop).result()
        self._scoring = Scoring(service, options, kept)
        self._identity = json.dumps(identity_of(service, settings, options, kept), sort_keys=True)

    def __call__(self, block: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(self._rank(rows_of(block)), self._loop).result()

    async def _start(self, settings: Any) -> "Service":
        from app.main import create_app

        self._stack = AsyncExitStack()  # the service runs as long as the process
        return await self._stack.enter_async_context(running(create_app(settings)))

    async def _rank(self, rows: Sequence[Row]) -> Any:
        outcomes = await asyncio.gather(*map(self._outcome, rows))
        self._scoring.widen_batches()
        return outcomes_block(rows, outcomes, self._identity)

    async def _outcome(self, row: Row) -> Outcome:
        try:
            request, kept = self._scoring.parse(row)
        except BadRow as error:
            return bad(row, str(error))
        return await self._scoring.rank(row, request, kept)

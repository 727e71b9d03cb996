"""`reranker bulk --ray`: the rows of a file on a cluster of Ray, with an engine in each of several processes.

Ray Data reads the file on this machine, sends blocks of rows to the processes and returns them in order. The files of
a run are those of a run without Ray, so either continues what the other has begun. Needs the extra `ray`.
"""

import asyncio
import json
import logging
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from app.bulk.checkpoint import Checkpoint
from app.bulk.job import Job
from app.bulk.progress import Report
from app.bulk.rows import Place, identify, open_source
from app.bulk.run import save
from app.environment import prepare_ray
from app.errors import StartupError, first_line
from app.evaluation.service import OVERRIDES, errors

if TYPE_CHECKING:
    from app.bulk.blocks import Done

# A process ranks the rows of a block together, and has the next blocks already. Larger ones would leave processes
# without work at the end of the file.
BLOCK_BYTES, BLOCKS_AHEAD = 1 << 18, 3


class ClusterJob(Job):
    """A job with engines on a cluster."""

    def __init__(self, *arguments: Any, actors: int | None = None) -> None:
        """`actors`: how many engines. None: one per GPU, or one per node without GPUs."""
        super().__init__(*arguments)
        self._actors = actors

    async def _run(self, settings: Any, engine: Any) -> None:  # noqa: ARG002 (the engines are elsewhere)
        source, identity = open_source(self._path, settings.max_body_bytes), {"input": identify(self._path)}
        earlier = self._earlier()
        if earlier:  # the rest of the identity is known when the engines are
            earlier.check(dict(earlier.identity) | identity, self._output.state)
        if not (earlier and earlier.finished):
            start = earlier or Checkpoint(identity, counts=self.counts)
            started = monotonic()
            try:
                with _cluster() as ray, Report(errors, source.size, self._before) as report:
                    await self._write(self._blocks(ray, settings, start.place), start, identity, report)
            finally:
                self.seconds = monotonic() - started
        self._output.finish()

    async def _write(self, blocks: Iterator[Any], now: Checkpoint, identity: Mapping[str, Any], report: Report) -> None:
        """Write rows, and a checkpoint about every second. Nothing is written before the first row names its engine."""
        from app.bulk.blocks import outcomes_of

        known, due = "", 0.0
        try:
            while (block := await asyncio.to_thread(next, blocks, None)) is not None:
                for row in outcomes_of(block):
                    if not known:
                        self._open(now, {**identity, **json.loads(row.identity)})
                        known = row.identity
                    _check(row, now, known)
                    self._output.write(row.outcome)
                    now.counts.add(row.outcome.counts)
                    now.place = row.end
                    report.show(row.done, now.counts)
                if known and monotonic() >= due:
                    due = save(self._output, now)
            if not known:  # there are no rows
                self._open(now, now.identity)
                known = "none"
            now.finished = True
        finally:
            if known:
                self._output.save(now)
                self._output.close()

    def _open(self, start: Checkpoint, identity: Mapping[str, Any]) -> None:
        """Continue from the checkpoint. Raises `CannotResume` if its engine was another one."""
        if start.place.number:
            start.check(identity, self._output.state)
            errors.print(f"Continuing after {self.done:,} rows", highlight=False)
        start.identity = identity
        self._output.open(start)

    def _blocks(self, ray: Any, settings: Any, start: Place) -> Iterator[Any]:
        """Blocks of outcomes, in the order of the file."""
        from app.bulk.worker import Rows, Worker

        count, share = shares([node["Resources"] for node in ray.nodes() if node["Alive"]], settings, self._actors)
        chosen = {name: getattr(settings, name) for name in settings.model_fields_set if name not in OVERRIDES}
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.target_max_block_size = BLOCK_BYTES
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        rows = ray.data.read_datasource(
            Rows(self._path.absolute(), settings.max_body_bytes, start),
            override_num_blocks=1,
            num_cpus=0,
            label_selector=here,
        )
        ranked = rows.map_batches(
            Worker,
            fn_constructor_args=(chosen, dict(self._options), list(self._kept)),
            compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=BLOCKS_AHEAD),
            batch_size=None,
            batch_format="pyarrow",
            **share,
        )
        return iter(ranked.iter_batches(batch_size=None, batch_format="pyarrow"))


def shares(nodes: Sequence[Mapping[str, float]], settings: Any, actors: int | None) -> tuple[int, dict[str, float]]:
    """The number of processes, and what each one reserves. `nodes`: their resources. Raises `StartupError`."""
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if settings.device.startswith("cuda") or (settings.device == "auto" and gpus):
        if not gpus or (actors or 1) > gpus:
            raise StartupError(f"--actors: the cluster has {gpus} GPUs, and each process needs one")
        return actors or gpus, {"num_gpus": 1.0}
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not cpus:
        raise StartupError("No node of the cluster has a CPU for a process (ray start --num-cpus)")
    count = actors or len(cpus)
    asked = "threads" in settings.model_fields_set
    share = settings.threads if asked else max(1, min(cpus) // math.ceil(count / len(cpus)))
    if (room := sum(each // share for each in cpus)) < count:
        raise StartupError(
            f"--actors: the cluster has room for {room} processes with {share} CPUs each, not for {count}"
        )
    return count, {"num_cpus": float(share)}


def _check(row: "Done", now: Checkpoint, known: str) -> None:
    """Raise `StartupError` if another process has another engine: the scores of a file must be comparable."""
    if row.identity != known:
        first, other = json.loads(known)["model"], json.loads(row.identity)["model"]
        raise StartupError(
            f"Two processes have different engines: {first} and {other}. Install the same versions on all nodes, and "
            "set RERANKER_PRECISION, RERANKER_BATCH_TOKENS, RERANKER_STREAMS and RERANKER_PART_TOKENS, which are "
            "measured on each machine"
        )
    if row.end.number <= now.place.number:
        raise RuntimeError(f"Ray returned row {row.end.number} after row {now.place.number}")


@contextmanager
def _cluster() -> Iterator[Any]:
    """Use the cluster of RAY_ADDRESS or of this machine, or else start one here. Raises `StartupError`."""
    ray = _load_ray()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="warning")
        signal.signal(signal.SIGTERM, handler)  # Ray has put its own there
        yield ray
    except ray.exceptions.RayError as error:
        raise StartupError(f"Ray: {first_line(getattr(error, 'cause', None) or error)}") from error
    except ConnectionError as error:
        raise StartupError(f"Ray: {first_line(error)}. Check RAY_ADDRESS") from error
    finally:
        ray.shutdown()


def _load_ray() -> Any:
    """Raises `StartupError` without the extra."""
    prepare_ray()
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise StartupError(f"--ray needs the extra: pip install '.[ray]' ({error})") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray

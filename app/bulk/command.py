"""`reranker bulk IN OUT`: rank millions of rows on one machine, in this process.

A run that was stopped or killed continues with the same command, and its output is the same as that of a run without a
stop.
"""

import asyncio
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import typer

from app.bulk import options
from app.bulk.job import Job
from app.bulk.scoring import BadRow, parse_request
from app.errors import EngineBroken, StartupError
from app.evaluation.service import own_settings, prepare_logging

# Exit status of a run that ended, but has rows without a ranking; and of one that a signal has stopped.
SOME_BAD, INTERRUPTED = 3, 130
# This process is the only caller: all rows of the window may be in work, and none has a deadline.
ALONE: dict[str, Any] = {"max_parallel": 100_000, "request_timeout": 0.0}
RESUME = "Run the same command again to continue."


def main(
    source: options.Source,
    target: options.Target,
    top_k: options.TopK = None,
    return_documents: options.ReturnDocuments = False,
    raw_scores: options.RawScores = False,
    score_threshold: options.Threshold = None,
    max_tokens_per_doc: options.MaxTokens = None,
    long_documents: options.LongDocuments = None,
    instruction: options.Instruction = None,
    prefilter: options.Prefilter = None,
    prefilter_top_k: options.PrefilterTopK = None,
    fusion: options.Fusion = None,
    fusion_weight: options.FusionWeight = None,
    fusion_method: options.FusionMethod = None,
    keep: options.Keep = None,
    model: options.Model = None,
    backend: options.Backend = None,
    precision: options.Precision = None,
    overwrite: options.Overwrite = False,
    on_ray: options.OnRay = False,
    actors: options.Actors = None,
    as_json: options.AsJson = False,
) -> None:
    """Rank the rows of a large file in this process."""
    fields = {
        "top_k": top_k,
        "return_documents": return_documents or None,
        "raw_scores": raw_scores or None,
        "score_threshold": score_threshold,
        "max_tokens_per_doc": max_tokens_per_doc,
        "long_documents": long_documents,
        "instruction": instruction,
        "prefilter": prefilter,
        "prefilter_top_k": prefilter_top_k,
        "fusion": fusion,
        "fusion_weight": fusion_weight,
        "fusion_method": fusion_method,
    }
    _check(source, target)
    job = _job(on_ray, actors)(source, target, _checked(fields), keep or options.KEPT, overwrite)
    _run(job, {"model": model, "backend": backend, "precision": precision})
    job.print_totals(as_json)
    if job.counts.bad:
        raise typer.Exit(SOME_BAD)


def _job(on_ray: bool, actors: int | None) -> Callable[..., Job]:
    """What makes the job. Raises `BadParameter`."""
    if on_ray:
        from app.bulk.cluster import ClusterJob

        return partial(ClusterJob, actors=actors)
    if actors:
        raise typer.BadParameter("needs --ray", param_hint="--actors")
    return Job


def _run(job: Job, chosen: dict[str, Any]) -> None:
    """Run the job with the settings of the environment and those in `chosen`. Exits with a message if it stops."""
    try:
        settings = own_settings(chosen | ALONE, measured=False)
        prepare_logging(settings)
        asyncio.run(_until_signal(job, settings))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _end(f"Interrupted after {job.done:,} rows. {RESUME}", INTERRUPTED)
    except OSError as error:
        _end(f"{error.filename or job.target}: {error.strerror or error}. {RESUME}")
    except EngineBroken as error:
        _end(f"{error}. {RESUME}")
    except StartupError as error:
        _end(str(error))


def _end(message: str, status: int = 1) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(status) from None


def _check(source: Path, target: Path) -> None:
    """Fail before the model is loaded. Raises `BadParameter`."""
    if not source.is_file():
        raise typer.BadParameter(
            f"{str(source)!r} must be a file: a run that continues reads it again", param_hint="IN"
        )
    if target.suffix == ".parquet":
        raise typer.BadParameter("must be JSONL, with the suffix .jsonl or .jsonl.gz", param_hint="OUT")
    if target.exists() and target.samefile(source):
        raise typer.BadParameter("must not be the input", param_hint="OUT")
    if not target.absolute().parent.is_dir():
        raise typer.BadParameter(f"the folder of {str(target)!r} does not exist", param_hint="OUT")


def _checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the options that are set, as the API reads them. Raises `BadParameter`."""
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        request = parse_request({"query": "q", "documents": ["d"], **given})
    except BadRow as error:
        raise typer.BadParameter(str(error)) from None
    return {name: getattr(request, name) for name in given}


async def _until_signal(job: Job, settings: Any) -> None:
    """Run the job; Ctrl+C and SIGTERM cancel it, so that it writes a checkpoint before it ends."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 (for the type)
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # Windows: only Ctrl+C, through asyncio.run
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await job.run(settings)

"""`reranker plan`: the replicas that a load needs, from the speed of this machine."""

import asyncio
import json
import math
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from app.errors import StartupError
from app.evaluation.service import errors, own_service, own_settings, prepare_logging
from app.planning.estimate import HIGHEST_UTILISATION, Speed, replicas_for
from app.planning.measurement import CLIENTS, Measurement, measure
from app.planning.texts import Size
from reranker_client import AsyncClient, RerankError
from reranker_client.models import Info

TIMEOUT_SECONDS = 600
# Numbers of replicas in the table: one less than needed, and two more.
LESS, MORE = 1, 2
SHARES = (0.5, 0.95)


def main(
    documents: Annotated[int, typer.Option(min=1, help="Documents per request")] = 20,
    words: Annotated[int, typer.Option(min=1, help="Words per document")] = 150,
    rate: Annotated[float, typer.Option(min=0.001, help="Requests per second of all clients together")] = 5.0,
    p95: Annotated[float, typer.Option(min=0.1, help="Milliseconds for 95 % of the responses")] = 500.0,
    seconds: Annotated[float, typer.Option(min=0, help="Duration of the measurement")] = 30.0,
    model: Annotated[str | None, typer.Option(help="Overrides RERANKER_MODEL")] = None,
    url: Annotated[
        str | None, typer.Option(help="Measure the service at this URL (default: start one in this process)")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="API key for --url", envvar="RERANKER_API_KEY", show_envvar=True)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text")] = False,
) -> None:
    """Measure requests of this size and compute how many replicas the load needs."""
    if url and model:
        raise typer.BadParameter("cannot be combined with --model: the service has its own model", param_hint="--url")
    size = Size(documents, words)
    try:
        engine, found = asyncio.run(_measure(size, seconds, model, url, api_key))
    except (StartupError, RerankError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    plan = make_plan(found, rate, p95)
    if as_json:
        described = {"model": engine.model_id, "documents": documents, "words": words}
        print(json.dumps(described | plan, indent=2))
    else:
        print(f"{engine.model_id}, {engine.backend} {engine.precision} on {engine.device}")
        _print(plan, size)
    if plan["problem"]:
        raise typer.Exit(1)


async def _measure(
    size: Size, seconds: float, model: str | None, url: str | None, api_key: str | None
) -> tuple[Info, Measurement]:
    """Raises `StartupError` and `RerankError`."""
    if url:
        service: Any = AsyncClient(url, api_key, TIMEOUT_SECONDS)
    else:
        settings = own_settings({"model": model})
        prepare_logging(settings)
        service = own_service(settings)
    async with service as client:
        engine = await client.info()
        with errors.status(f"Measuring for {seconds:g} s ..."):
            return engine, await measure(client, size, seconds)


def make_plan(found: Measurement, rate: float, p95: float) -> dict[str, Any]:
    """The figures of the plan. `p95` is in milliseconds, as all times of the plan."""
    speed = found.speed
    p50_alone, p95_alone = (1000 * seconds for seconds in speed.quantiles(0.0, SHARES))
    highest = speed.highest_rate(p95 / 1000)
    needed = replicas_for(rate, highest) if highest else None
    first = max(1, (needed or 1) - LESS)
    return {
        "rate": rate,
        "p95_target_ms": p95,
        "measured": {
            "alone": {"requests": len(speed.alone), "p50_ms": p50_alone, "p95_ms": p95_alone},
            "busy": {"requests": found.requests, "clients": CLIENTS, "requests_per_second": speed.capacity},
        },
        "service_ms": 1000 * speed.service,
        "service_variation": speed.variation,
        "highest_rate_per_replica": highest,
        "replicas": needed,
        "table": [_row(speed, rate, count, p95) for count in range(first, needed + MORE + 1)] if needed else [],
        "problem": None if needed else _problem(p50_alone, p95_alone, p95),
    }


def _row(speed: Speed, rate: float, replicas: int, target: float) -> dict[str, Any]:
    """What to expect of this many replicas. Times are None if the queue grows."""
    each = rate / replicas
    used = speed.utilisation(each)
    p50, p95 = (1000 * seconds for seconds in speed.quantiles(each, SHARES))
    wait = 1000 * speed.mean_wait(each)
    return {
        "replicas": replicas,
        "rate_per_replica": each,
        "utilisation": used,
        "mean_wait_ms": wait if math.isfinite(wait) else None,
        "p50_ms": p50 if math.isfinite(p50) else None,
        "p95_ms": p95 if math.isfinite(p95) else None,
        "meets_target": p95 <= target and used <= HIGHEST_UTILISATION,
    }


def _problem(p50: float, p95: float, target: float) -> str:
    what = "even its median is above the target" if p50 > target else "no number of replicas makes that shorter"
    return (
        f"A p95 of {target:g} ms cannot be met: a request alone on an idle replica has a p95 of "
        f"{p95:.0f} ms, and {what}. "
        "Send fewer or shorter documents (max_tokens_per_doc, prefilter), use a faster model or machine, or raise --p95"
    )


def _print(plan: dict[str, Any], size: Size) -> None:
    alone, busy, service = plan["measured"]["alone"], plan["measured"]["busy"], plan["service_ms"]
    print(f"Requests of {size.documents} documents of {size.words} words\n")
    print(f"Alone:  p50 {alone['p50_ms']:.0f} ms, p95 {alone['p95_ms']:.0f} ms ({alone['requests']} requests)")
    print(
        f"Busy:   {busy['requests_per_second']:.2f} requests/s with {busy['clients']} clients "
        f"({busy['requests']} requests)"
    )
    print(f"S:      1 / {busy['requests_per_second']:.2f} = {service:.0f} ms of the engine per request")
    print(f"c²:     {plan['service_variation']:.3f}, the variance of S over the square of its mean")
    if plan["problem"]:
        typer.echo(f"\n{plan['problem']}", err=True)
        return
    print("Load:   u = rate per replica × S")
    print("Wait:   u × S × (1 + c²) / (2 × (1 − u)) on average; percentiles from the whole distribution (M/G/1)\n")
    table = Table("replicas", "requests/s each", "utilisation u", "mean wait ms", "p50 ms", "p95 ms", "meets the p95")
    for column in table.columns:
        column.justify = "right"
    for row in plan["table"]:
        times = ("-" if row[name] is None else f"{row[name]:.0f}" for name in ("mean_wait_ms", "p50_ms", "p95_ms"))
        verdict = "yes" if row["meets_target"] else "overloaded" if row["p95_ms"] is None else "no"
        table.add_row(
            str(row["replicas"]), f"{row['rate_per_replica']:.2f}", f"{row['utilisation']:.0%}", *times, verdict
        )
    console = Console()
    Console(width=console.width if console.is_terminal else 100).print(table)
    needed, highest = plan["replicas"], plan["highest_rate_per_replica"]
    replicas = "1 replica" if needed == 1 else f"{needed} replicas"
    print(f"{plan['rate']:g} requests/s with a p95 of {plan['p95_target_ms']:g} ms need {replicas} of this size.")
    print(f"One replica sustains up to {highest:.2f} requests/s within that p95.")

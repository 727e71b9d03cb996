"""The pages that the benchmarks write with `--html`, from the figures that `--json` prints."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.engines.models.source import EMBEDDED_MODELS
from app.machine.hardware import cpu_limit, cpu_name, memory_limit
from app.pages.charts import Bar, bars
from app.pages.curves import Curve, curves, key
from app.pages.markup import Markup
from app.pages.page import grid, page, paragraph, section, table

OUR_NAME = "reranker"
# The percentiles of a load test that are drawn, and their figures.
PERCENTILES = {"p50": "p50_ms", "p90": "p90_ms", "p95": "p95_ms", "p99": "p99_ms"}
OPEN_PERCENTILES = {"p50": "p50_seconds", "p90": "p90_seconds", "p99": "p99_seconds", "max": "longest_seconds"}
# Throughput of the benchmark of the service, and its figures.
SPEEDS = {
    "CrossEncoder.predict": "predict_documents_per_second",
    f"{OUR_NAME}, 1 client": "documents_per_second_1_client",
    f"{OUR_NAME}, 8 clients": "documents_per_second_8_clients",
}

METHOD = (
    "Medians over the rounds, in which the contenders took turns. In the charts the service is blue and its curves are "
    "solid; its peers are gray and dashed. Compare figures only within this page."
)

Grid = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""A table: title, headings after the first column, and rows."""


def model_name(folder: Path) -> str:
    """What clients call an embedded model, or the name of the folder."""
    return next((name for name, embedded in EMBEDDED_MODELS.values() if embedded == folder), folder.name)


def _machine() -> dict[str, str]:
    return {
        "processor": cpu_name() or "unknown",
        "cores": str(cpu_limit()),
        "memory": f"{memory_limit() / 1e9:.0f} GB",
    }


def comparison_page(figures: Mapping[str, Any], settings: Mapping[str, str], grids: Iterable[Grid]) -> Markup:
    """The service and its peers. `grids`: the tables of throughput and of latencies."""
    contenders = figures["contenders"]
    cells = list(dict.fromkeys(name for row in contenders for name in row["cells"]))
    throughput, latencies = (table(title, ("", *names), rows) for title, names, rows in grids)
    ceilings = ", ".join(f"{kind} {value:.0f}" for kind, value in figures["ceilings_gflops"].items())
    memory = [_bar(row, row["peak_memory_mb"], ".0f") for row in contenders]
    starts = [_bar(row, row["start_seconds"], ".1f") for row in contenders]
    return page(
        "The service and its peers",
        {**settings, **_machine(), "ceilings, GFLOP/s": ceilings},
        section("Throughput", paragraph(METHOD), throughput, grid(*(_throughput(contenders, cell) for cell in cells))),
        section("Latency", latencies, *_latencies(contenders, cells)),
        section("Memory and start", grid(bars("Peak memory, MB", memory), bars("Time to start, s", starts))),
    )


def _bar(row: Mapping[str, Any], value: float | None, form: str) -> Bar:
    """The bar of one contender. Without a value it died."""
    kind = "ours" if row["contender"].startswith(OUR_NAME) else "other"
    return Bar(row["contender"], value or 0, "died" if value is None else format(value, form), kind)


def _throughput(contenders: Sequence[Mapping[str, Any]], cell: str) -> Markup:
    measured = [row for row in contenders if cell in row["cells"]]
    speeds = [_bar(row, row["cells"][cell].get("documents_per_second"), ".3g") for row in measured]
    return bars(f"{_described(cell)}: documents/s", speeds)


def _latencies(contenders: Sequence[Mapping[str, Any]], cells: Sequence[str]) -> Iterator[Markup]:
    """The key, and a drawing of each cell with the curves of the contenders that survived."""
    by_cell = {cell: list(_curves(contenders, cell)) for cell in cells}
    known = {curve.number: curve for drawn in by_cell.values() for curve in drawn}
    yield key([known[number] for number in sorted(known)])
    places = {cell: next((row["cells"][cell] for row in contenders if row["cells"].get(cell)), None) for cell in cells}
    yield grid(
        *(
            curves(
                f"{_described(cell)}: time per request ({found['requests']} requests)",
                list(found["percentiles_ms"]),
                drawn,
                "ms",
            )
            for cell, drawn in by_cell.items()
            if (found := places[cell])
        )
    )


def _curves(contenders: Sequence[Mapping[str, Any]], cell: str) -> Iterator[Curve]:
    for number, row in enumerate(contenders, 1):
        if found := row["cells"].get(cell):
            is_peer = not row["contender"].startswith(OUR_NAME)
            yield Curve(number, row["contender"], list(found["percentiles_ms"].values()), is_peer)


def _described(cell: str) -> str:
    """`short, 8` is `short, 8 clients`."""
    return f"{cell} client{'' if cell.endswith(', 1') else 's'}"


def load_page(title: str, summaries: Sequence[Mapping[str, Any]], settings: Mapping[str, str], made: Grid) -> Markup:
    """Runs with one or several numbers of clients."""
    caption, names, rows = made
    drawn = [
        Curve(number, _clients(row), [row[name] for name in PERCENTILES.values()], mark=str(row["concurrency"]))
        for number, row in enumerate(summaries, 1)
        if row["succeeded"]
    ]
    speeds = [
        Bar(_clients(row), row["documents_per_second"], f"{row['documents_per_second']:g}", "ours") for row in summaries
    ]
    content = [table(caption, names, rows)]
    if drawn:
        latency = curves("Time of the requests that succeeded", list(PERCENTILES), drawn, "ms")
        content += [key(drawn), grid(bars("Documents/s", speeds), latency)]
    else:
        content.append(paragraph("No request succeeded."))
    return page(title, settings, section("Throughput and latency", *content))


def _clients(row: Mapping[str, Any]) -> str:
    return f"{row['concurrency']} client{'' if row['concurrency'] == 1 else 's'}"


def service_page(columns: Sequence[Mapping[str, Any]], settings: Mapping[str, str], made: Grid) -> Markup:
    """The service with each engine next to direct calls of the library."""
    caption, names, rows = made
    speeds = (
        bars(
            f"{column['engine']}: documents/s",
            [_bar({"contender": name}, column[figure], "g") for name, figure in SPEEDS.items()],
        )
        for column in columns
    )
    memory = [Bar(column["engine"], column["memory_mb"], f"{column['memory_mb']} MB", "ours") for column in columns]
    return page(
        "The service and CrossEncoder.predict",
        {**settings, **_machine()},
        section("Figures", table(caption, ("", *names), rows)),
        section("Throughput and memory", grid(*speeds, bars("Memory of the service after the load", memory))),
    )


def open_loop_page(loads: Sequence[Mapping[str, Any]], settings: Mapping[str, str], made: Grid) -> Markup:
    """Latency and rejections below and above the capacity."""
    caption, names, rows = made
    names_of = [f"{row['load']:.0%} of the capacity" for row in loads]
    drawn = [
        Curve(number, name, [float(row[figure]) for figure in OPEN_PERCENTILES.values()], mark=name.split()[0])
        for number, (name, row) in enumerate(zip(names_of, loads, strict=True), 1)
        if row["served_per_second"] and row["longest_seconds"]
    ]
    refused = [
        Bar(name, row["refused"], f"{row['refused']:.0%}", "other") for name, row in zip(names_of, loads, strict=True)
    ]
    content = [bars("Rejected requests", refused, top=1)]
    if drawn:
        content.append(curves("Time from when a request was due", list(OPEN_PERCENTILES), drawn, "s"))
    return page(
        "Requests that arrive at a fixed rate",
        {**settings, **_machine()},
        section("Latency and rejections", table(caption, names, rows), key(drawn), grid(*content)),
    )

"""The command `reranker`: serve, export, bulk, evaluate, calibrate, tune, plan, and query a running service."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app import __version__
from app.__main__ import run
from app.bulk.command import main as bulk
from app.evaluation.calibrate import main as calibrate
from app.evaluation.command import main as evaluate
from app.evaluation.tune import main as tune
from app.export.command import main as export
from app.planning.command import main as plan
from reranker_client import Client, Ranking, RerankError, Result
from reranker_client.client import DEFAULT_URL

cli = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
Answer = TypeVar("Answer")

Url = Annotated[str, typer.Option(help="URL of the service", envvar="RERANKER_URL")]
ApiKey = Annotated[str | None, typer.Option(help="API key of the service", envvar="RERANKER_API_KEY", show_envvar=True)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")]


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@cli.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Rank documents by their relevance to a query."""


@cli.command()
def serve(
    check: Annotated[bool, typer.Option("--check", help="Validate the settings and exit")] = False,
) -> None:
    """Start the service. Settings are read from environment variables (RERANKER_*).

    Example: `RERANKER_PORT=9000 reranker serve`
    """
    run(["--check"] if check else [])


cli.command(
    name="export",
    help="Export a cross-encoder for serving without torch and compare it with the original.\n\n"
    "Example: `reranker export BAAI/bge-reranker-base --output exported`",
)(export)

cli.command(
    name="bulk",
    help="Rank the rows of a large file in this process. A run that was stopped or killed continues with the same "
    "command.\n\n"
    "Each row is a request: `query`, `documents` and any other field of the API, which applies to this row. The "
    "options apply to rows without that field. The RERANKER_* variables configure the model.\n\n"
    "Example: `reranker bulk candidates.jsonl.gz ranked.jsonl --top-k 10`",
)(bulk)

cli.command(
    name="evaluate",
    help="Measure nDCG, MRR, recall and query time on your own data, before and after reranking.\n\n"
    "Each line of the file is a JSON object with `query`, `documents` (in the order of your search; texts, or objects "
    "with `id` and `text`), `qrels` (relevance grades by document id, or a list with one grade per document) and an "
    "optional `qid`. A BEIR folder contains `corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv`. The RERANKER_* "
    "variables configure the service that is measured.\n\n"
    "Example: `RERANKER_PRECISION=fp32 reranker evaluate judged.jsonl`",
)(evaluate)

cli.command(
    name="calibrate",
    help="Fit the scores of an exported model to your own judgments, and store the result in the export.\n\n"
    "The file is that of `reranker evaluate`. A score of 0.8 then means that 80 % of such documents are relevant. One "
    "half of the queries is held out and shows the effect.\n\n"
    "Example: `reranker calibrate judged.jsonl --model exported`",
)(calibrate)

cli.command(
    name="tune",
    help="Compare models, precisions, windows, depths and fusion on your own data, by nDCG@10 and time per query.\n\n"
    "The file is that of `reranker evaluate`. The output ends with the settings to copy.\n\n"
    "Example: `reranker tune judged.jsonl --model embedded --model BAAI/bge-reranker-base --seconds 900`",
)(tune)

cli.command(
    name="plan",
    help="Compute how many replicas a load needs, from the speed of this machine.\n\n"
    "Sends requests of this size one after another, and from several clients at once. The waits at a load come from a "
    "queueing model. The RERANKER_* variables configure the service that is measured.\n\n"
    "Example: `reranker plan --documents 20 --words 150 --rate 5 --p95 500`",
)(plan)


@cli.command()
def info(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Print the model, engine and limits of a running service.

    Example: `reranker info --url http://127.0.0.1:8000`
    """
    with Client(url, api_key) as client:
        found = _or_exit(client.info)
    if as_json:
        print(found.model_dump_json(indent=2))
        return
    for name, value in found.model_dump().items():
        print(f"{name:24} {value}")


@cli.command()
def rerank(
    file: Annotated[
        typer.FileText,
        typer.Argument(encoding="utf-8-sig", help="One document per line, as text or JSON; - reads standard input"),
    ],
    query: Annotated[str, typer.Option("--query", "-q", help="The query")],
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", min=1, help="Number of results to print (default: all)")
    ] = None,
    prefilter: Annotated[
        str | None, typer.Option(help="First stage for large files: off, lexical, embedding or hybrid")
    ] = None,
    budget_ms: Annotated[
        int | None, typer.Option(min=0, help="Milliseconds that it should take: reads as many lines as fit")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Rank the lines of a file with a running service.

    Each line is one document: plain text, a JSON string, or a JSON object with `text` and optional `id` and
    `metadata`.

    Examples:

    `reranker rerank --query "what causes tides" passages.txt`

    `rg -i tide notes/ | reranker rerank -q "what causes tides" -k 5 -`
    """
    try:
        lines = dict(_documents(file))
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"not valid UTF-8: {error}", param_hint="FILE") from None
    if not lines:
        raise typer.BadParameter("no documents: every line is empty", param_hint="FILE")
    with Client(url, api_key) as client:
        documents = list(lines.values())
        options = {"return_documents": True, "prefilter": prefilter, "budget_ms": budget_ms}
        ranking = _or_exit(lambda: client.rerank(query, documents, top_k=top_k, **options))
    if as_json:
        print(ranking.model_dump_json(indent=2, exclude_none=True))
        return
    _print_table(ranking, list(lines))


def _documents(lines: Iterable[str]) -> Iterator[tuple[int, str | dict[str, Any]]]:
    """Yield (line number, document) of each line that is not empty."""
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text:
            yield number, _document(text, number)


def _document(text: str, number: int) -> str | dict[str, Any]:
    if not text.startswith(("{", '"')):
        return text
    try:
        document: str | dict[str, Any] = json.loads(text)
    except ValueError as error:
        if text.startswith('"'):  # plain text may begin with a quotation
            return text
        raise typer.BadParameter(f"line {number}: invalid JSON: {error}", param_hint="FILE") from None
    return document


def _or_exit(call: Callable[[], Answer]) -> Answer:
    try:
        return call()
    except RerankError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def _print_table(ranking: Ranking, numbers: Sequence[int]) -> None:
    table = Table("rank", "score", "line", "id", "document")
    for column in table.columns[:3]:
        column.justify = "right"
    table.columns[4].overflow = "fold"
    for rank, result in enumerate(ranking, 1):
        score, line = f"{result.relevance_score:.4f}", str(numbers[result.index])
        identifier = "" if result.id is None else str(result.id)
        # Text, because a plain string would be read as rich's markup: [bold].
        table.add_row(str(rank), score, line, Text(identifier), Text(_written(result)))
    Console().print(table)


def _written(result: Result) -> str:
    """The document's text, or all of the document as JSON if it has other fields only."""
    if result.document is None:
        return ""
    return result.document.text or result.document.model_dump_json(exclude_none=True)


if __name__ == "__main__":
    cli(prog_name="reranker")

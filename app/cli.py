"""The command `reranker`: serve, export, evaluate, and ask a running service."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app import __version__
from app.__main__ import run
from app.evaluation.command import main as evaluate
from app.export.command import main as export
from reranker_client import Client, Ranking, RerankError
from reranker_client.client import DEFAULT_URL

cli = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
Answer = TypeVar("Answer")

Url = Annotated[str, typer.Option(help="Where the service is", envvar="RERANKER_URL")]
ApiKey = Annotated[str | None, typer.Option(help="The service's API key", envvar="RERANKER_API_KEY", show_envvar=True)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@cli.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print it", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Put passages in the order of their relevance to a query."""


@cli.command()
def serve(
    check: Annotated[bool, typer.Option("--check", help="Only validate the settings")] = False,
) -> None:
    """Start the service. Its settings are environment variables.

    Example: `RERANKER_PORT=9000 reranker serve`
    """
    run(["--check"] if check else [])


cli.command(
    name="export",
    help="Export a cross-encoder for serving without torch, and compare it with the original.\n\n"
    "Example: `reranker export BAAI/bge-reranker-base --output exported`",
)(export)

cli.command(
    name="evaluate",
    help="Measure ranking on your own data before and after reranking: nDCG, MRR, recall, and the time of a query.\n\n"
    "A line of the file is a JSON object of `query`, `documents` in the order of your search (texts, or objects with "
    "`id` and `text`) and `qrels` (grades by document id, or a list of them), and if you like `qid`. A folder has "
    "`corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv`. The RERANKER_* variables say what is measured.\n\n"
    "Example: `RERANKER_PRECISION=fp32 reranker evaluate judged.jsonl`",
)(evaluate)


@cli.command()
def info(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Say what runs there.

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
        typer.Argument(encoding="utf-8-sig", help="One document a line: text, or JSON; - is the standard input"),
    ],
    query: Annotated[str, typer.Option("--query", "-q", help="The question or search text")],
    top_k: Annotated[int | None, typer.Option("--top-k", "-k", min=1, help="How many to print")] = None,
    prefilter: Annotated[
        str | None, typer.Option(help="First stage for many lines: off, lexical, embedding or hybrid")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Rank the lines of a file with a running service.

    A line is a document: a plain text, or a JSON string or object with `text` and, if you like, `id` and `metadata`.

    Examples:

    `reranker rerank --query "what causes tides" passages.txt`

    `rg -i tide notes/ | reranker rerank -q "what causes tides" -k 5 -`
    """
    try:
        lines = dict(_documents(file))
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"is not UTF-8: {error}", param_hint="FILE") from None
    if not lines:
        raise typer.BadParameter("has no lines", param_hint="FILE")
    with Client(url, api_key) as client:
        options: dict[str, Any] = {"top_k": top_k, "return_documents": True, "prefilter": prefilter}
        ranking = _or_exit(lambda: client.rerank(query, list(lines.values()), **options))
    if as_json:
        print(ranking.model_dump_json(indent=2, exclude_none=True))
        return
    _print_table(ranking, list(lines))


def _documents(lines: Iterable[str]) -> Iterator[tuple[int, str | dict[str, Any]]]:
    """Those that are not empty, with their numbers."""
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text.startswith(("{", '"')):
            try:
                yield number, json.loads(text)
            except ValueError as error:
                if text.startswith('"'):  # a sentence
                    yield number, text
                    continue
                raise typer.BadParameter(f"line {number} is not JSON: {error}", param_hint="FILE") from None
        elif text:
            yield number, text


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
        document = result.document
        text = (document.text if document else None) or (
            document.model_dump_json(exclude_none=True) if document else ""
        )
        identifier = "" if result.id is None else str(result.id)
        table.add_row(
            str(rank), f"{result.relevance_score:.4f}", str(numbers[result.index]), Text(identifier), Text(text)
        )
    Console().print(table)

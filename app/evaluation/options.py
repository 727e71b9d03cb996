"""Options of the commands that read judged queries."""

from pathlib import Path
from typing import Annotated

import typer

JudgedFile = Annotated[
    Path, typer.Argument(exists=True, help="JSONL file with queries, or a folder in the BEIR layout")
]
TrecRun = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="TREC run with the documents for a BEIR folder (default: BM25)"),
]
Depth = Annotated[int | None, typer.Option(min=1, help="Documents per query (default: all; 100 if BM25 finds them)")]
Queries = Annotated[int | None, typer.Option(min=1, help="Number of queries to read (default: all)")]

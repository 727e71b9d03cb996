"""Options of the command. Those that are fields of a request apply to rows without that field."""

from pathlib import Path
from typing import Annotated

import typer

KEPT = ("id", "qid", "query")

Source = Annotated[
    Path,
    typer.Argument(metavar="IN", exists=True, dir_okay=False, help="JSONL, also .gz, or Parquet: a request per row"),
]
Target = Annotated[
    Path, typer.Argument(metavar="OUT", dir_okay=False, help="JSONL, also .gz: a line per row, in the same order")
]
TopK = Annotated[int | None, typer.Option("--top-k", "-k", min=1, help="Results per row (default: all)")]
ReturnDocuments = Annotated[bool, typer.Option("--return-documents", help="Write the texts too")]
RawScores = Annotated[bool, typer.Option("--raw-scores", help="Write logits")]
Threshold = Annotated[float | None, typer.Option(help="Drop results with a lower score")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Tokens of a document to read")]
LongDocuments = Annotated[
    str | None, typer.Option(help="Documents longer than the window: truncate, chunk_max or refuse")
]
Instruction = Annotated[str | None, typer.Option(help="What the model should look for, if it takes an instruction")]
Prefilter = Annotated[str | None, typer.Option(help="First stage: off, lexical, embedding or hybrid")]
PrefilterTopK = Annotated[int | None, typer.Option(min=1, help="Documents that the first stage keeps")]
Fusion = Annotated[str | None, typer.Option(help="What else decides the order: off, lexical, score or order")]
FusionWeight = Annotated[float | None, typer.Option(help="Weight of that evidence; the model's is 1")]
FusionMethod = Annotated[str | None, typer.Option(help="zscore or rrf")]
Keep = Annotated[
    list[str] | None, typer.Option(help=f"Field of a row to copy, may be repeated (default: {', '.join(KEPT)})")
]
Model = Annotated[str | None, typer.Option(help="Overrides RERANKER_MODEL")]
Backend = Annotated[str | None, typer.Option(help="Overrides RERANKER_BACKEND")]
Precision = Annotated[str | None, typer.Option(help="Overrides RERANKER_PRECISION")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start again, and replace OUT at the end")]
OnRay = Annotated[
    bool, typer.Option("--ray", help="Use the processes of a Ray cluster: that of RAY_ADDRESS, or a local one")
]
Actors = Annotated[
    int | None, typer.Option(min=1, help="With --ray: processes with an engine (default: one per GPU, or one per node)")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the totals as JSON")]

"""The command `reranker` in this process: a new process takes seconds to import what it needs."""

from click.testing import Result
from typer.testing import CliRunner

from app.cli import cli
from tests.logs import logging_restored

# Settings that leave nothing to measure at the start. The layout is the engine's own for one thread: with another one,
# the engine would be loaded and tested twice.
FIXED = {
    "RERANKER_BACKEND": "openvino",
    "RERANKER_PRECISION": "int8",
    "RERANKER_THREADS": "1",
    "RERANKER_STREAMS": "1",
    "RERANKER_PART_TOKENS": "384",
    "RERANKER_BATCH_TOKENS": "1024",
}
TERMINAL = {"COLUMNS": "200", "TERM": "dumb"}


def reranker(*arguments: object, **environment: str) -> Result:
    """Run the command with these environment variables. Unexpected exceptions are raised."""
    runner = CliRunner(env=TERMINAL | environment)
    with logging_restored():
        return runner.invoke(cli, list(map(str, arguments)), catch_exceptions=False)

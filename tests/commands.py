"""The command `reranker` in this process: a new process takes seconds to import what it needs."""

from click.testing import Result
from typer.testing import CliRunner

from app.cli import cli
from tests.logs import logging_restored

TERMINAL = {"COLUMNS": "200", "TERM": "dumb"}


def reranker(*arguments: object, **environment: str) -> Result:
    """Run the command with these environment variables. Unexpected exceptions are raised."""
    runner = CliRunner(env=TERMINAL | environment)
    with logging_restored():
        return runner.invoke(cli, list(map(str, arguments)), catch_exceptions=False)

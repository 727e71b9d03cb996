"""`scripts/bench NAME`."""

import sys
from importlib import import_module

import typer

COMMANDS = {
    "service": "speed.service",
    "spans": "speed.spans",
    "budget": "speed.budget",
    "bulk": "speed.bulk",
    "compare": "speed.compare",
    "container": "reliability.container",
    "dialects": "speed.dialects",
    "documents": "speed.documents",
    "engine": "speed.engine",
    "gpu": "speed.gpu",
    "long": "speed.long_documents",
    "memory": "speed.memory",
    "models": "speed.models",
    "openloop": "reliability.openloop",
    "plan": "reliability.plan",
    "prefilter": "speed.prefilter",
    "quality": "speed.quality",
    "promises": "reliability.promises",
    "routing": "reliability.routing",
}

cli = typer.Typer(no_args_is_help=True, add_completion=False)


@cli.callback()
def help_text() -> None:
    """Measure the service on this machine."""


# Import only the chosen command if there is one: some of them import torch, which takes seconds.
for name in COMMANDS.keys() & sys.argv[1:2] or COMMANDS:
    cli.command(name)(import_module(f"benchmarks.{COMMANDS[name]}").main)
cli()

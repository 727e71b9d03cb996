"""`scripts/bench service|compare|container|dialects|engine|gpu|long|openloop|prefilter|promises`."""

import typer

from benchmarks.compare import compare
from benchmarks.container import main as container
from benchmarks.dialects import main as dialects
from benchmarks.engine import main as engine
from benchmarks.gpu import main as gpu
from benchmarks.long_documents import main as long_documents
from benchmarks.openloop import main as openloop
from benchmarks.prefilter import main as prefilter
from benchmarks.promises import main as promises
from benchmarks.service import main as service

cli = typer.Typer(help="Figures of this service on this machine.", no_args_is_help=True, add_completion=False)
cli.command("service")(service)
cli.command("compare")(compare)
cli.command("container")(container)
cli.command("dialects")(dialects)
cli.command("engine")(engine)
cli.command("gpu")(gpu)
cli.command("long")(long_documents)
cli.command("openloop")(openloop)
cli.command("prefilter")(prefilter)
cli.command("promises")(promises)
cli()

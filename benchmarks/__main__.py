"""`scripts/bench NAME`."""

import typer

from benchmarks.reliability.container import main as container
from benchmarks.reliability.openloop import main as openloop
from benchmarks.reliability.plan import main as plan
from benchmarks.reliability.promises import main as promises
from benchmarks.reliability.routing import main as routing
from benchmarks.speed.budget import main as budget
from benchmarks.speed.bulk import main as bulk
from benchmarks.speed.compare import compare
from benchmarks.speed.dialects import main as dialects
from benchmarks.speed.documents import main as documents
from benchmarks.speed.engine import main as engine
from benchmarks.speed.gpu import main as gpu
from benchmarks.speed.long_documents import main as long_documents
from benchmarks.speed.models import main as models
from benchmarks.speed.prefilter import main as prefilter
from benchmarks.speed.service import main as service

cli = typer.Typer(help="Measure the service on this machine.", no_args_is_help=True, add_completion=False)
cli.command("service")(service)
cli.command("budget")(budget)
cli.command("bulk")(bulk)
cli.command("compare")(compare)
cli.command("container")(container)
cli.command("dialects")(dialects)
cli.command("documents")(documents)
cli.command("engine")(engine)
cli.command("gpu")(gpu)
cli.command("long")(long_documents)
cli.command("models")(models)
cli.command("openloop")(openloop)
cli.command("plan")(plan)
cli.command("prefilter")(prefilter)
cli.command("promises")(promises)
cli.command("routing")(routing)
cli()

"""`python -m training`: train a reranker on the public corpora or on texts of your own."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from training.recipe import RECIPES, default_base, pick_device

if TYPE_CHECKING:
    from training.calibration import Bin

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

Groups = Annotated[Path, typer.Argument(help="Folder of groups", exists=True, file_okay=False)]
Output = Annotated[Path, typer.Option(help="Folder to make")]
Base = Annotated[str | None, typer.Option(help="Bi-encoder to start from: folder or hub id; default all-MiniLM-L6-v2")]
Share = Annotated[float, typer.Option(help="Of the --base in the layers' weights", min=0, max=1)]
Size = Annotated[int, typer.Option(help="Documents of a group", min=2)]
Rows = Annotated[int, typer.Option(help="Pairs computed at a time", min=1)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda[:N]")]
Seed = Annotated[int, typer.Option(help="Of all that is drawn at random")]


@cli.callback()
def setup() -> None:
    """Train a reranker on the public corpora or on texts of your own."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for library in ("httpx", "sentence_transformers", "bm25s"):
        logging.getLogger(library).setLevel(logging.WARNING)


@cli.command()
def run(
    data: Annotated[Path, typer.Argument(help="Folder of the public corpora", exists=True, file_okay=False)],
    output: Output,
    base: Base = None,
    start: Annotated[str | None, typer.Option(help="Cross-encoder to go on from (default: the bi-encoder)")] = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """The whole recipe of the default model, as large as the device allows. Steps that are done are not done again."""
    with _told():
        from training.recipe import follow

        device = pick_device(device)
        recipe = RECIPES["cuda" if device.startswith("cuda") else "cpu"]
        _print_reliability(follow(recipe, data, output, base or default_base(), start, device, seed))


@cli.command()
def prepare(
    data: Annotated[Path, typer.Argument(help="Folder of the public corpora", exists=True, file_okay=False)],
    output: Output,
    base: Base = None,
    groups: Annotated[int, typer.Option(help="How many")] = RECIPES["cpu"].groups,
    size: Size = RECIPES["cpu"].size,
    passages: Annotated[int, typer.Option(help="Of each corpus at most")] = RECIPES["cpu"].passages,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Make groups of the public corpora."""
    with _told():
        from training.candidates import Embedder
        from training.late import LateInteraction
        from training.prepare import prepare

        base, device = base or default_base(), pick_device(device)
        embed, judge = Embedder(base, device), LateInteraction(base, device).judge
        prepare(data, output, embed, judge, count=groups, size=size, passages=passages, seed=seed)


@cli.command()
def prepare_own(
    file: Annotated[Path, typer.Argument(help="JSONL of {query, positives, negatives}", exists=True, dir_okay=False)],
    output: Output,
    base: Base = None,
    size: Size = 8,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Make groups of your own texts. Negatives that are missing are found among the other documents."""
    with _told():
        from training.candidates import Embedder
        from training.late import LateInteraction
        from training.prepare import prepare_own

        base, device = base or default_base(), pick_device(device)
        embed, judge = Embedder(base, device), LateInteraction(base, device).judge
        prepare_own(file, output, embed, judge, size=size, seed=seed)


@cli.command()
def teach(
    groups: Groups,
    output: Output,
    model: Annotated[list[str], typer.Option(help="Cross-encoder: folder or hub id; several are averaged")],
    keep: Annotated[int | None, typer.Option(help="Keep so many documents of each group, the hardest")] = None,
    rows: Rows = 64,
    device: Device = "auto",
) -> None:
    """Add the scores of trained models to the groups, as targets and to find the hardest documents."""
    with _told():
        from training.recipe import teach_folder

        teach_folder(groups, output, model, keep, rows, pick_device(device))


@cli.command()
def train(
    groups: Groups,
    output: Output,
    start: Annotated[str | None, typer.Option(help="Encoder or cross-encoder to start from: folder or hub id")] = None,
    steps: Annotated[int | None, typer.Option(help="Default: once through all groups")] = None,
    groups_per_step: Annotated[int, typer.Option(min=1)] = 8,
    learning_rate: Annotated[float, typer.Option()] = 6e-5,
    layers: Annotated[int | None, typer.Option(help="Repeat the layers to have so many, for a teacher")] = None,
    rows: Rows = 16,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Train a cross-encoder and calibrate its scores; started again, it goes on where it stopped."""
    with _told():
        from training.loop import Plan
        from training.recipe import train_folder

        plan = Plan(steps or 0, groups_per_step, learning_rate, rows, seed)
        _print_reliability(train_folder(groups, output, start or default_base(), plan, pick_device(device), layers))


@cli.command()
def average(
    models: Annotated[list[str], typer.Argument(help="Folders of models of one shape")],
    groups: Annotated[Path, typer.Option(help="Folder of groups, to calibrate on", exists=True, file_okay=False)],
    output: Output,
    base: Annotated[str | None, typer.Option(help="Encoder that the models were made of, to take a share of")] = None,
    base_share: Share = RECIPES["cpu"].base_share,
    rows: Rows = 16,
    device: Device = "auto",
) -> None:
    """Average the weights of models of several trainings, and calibrate the result."""
    with _told():
        from training.recipe import average_folders

        _print_reliability(average_folders(models, groups, output, rows, pick_device(device), base, base_share))


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong with files or models is told in one line."""
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


def _print_reliability(bins: "Sequence[Bin]") -> None:
    table = Table("score", "pairs", "mean score", "relevant", title="Reliability of the scores on held-out groups")
    for column in table.columns:
        column.justify = "right"
    for each in bins:
        table.add_row(
            f"{each.low:.1f} to {each.high:.1f}", f"{each.pairs:,}", f"{each.mean_score:.3f}", f"{each.relevant:.3f}"
        )
    Console().print(table)


if __name__ == "__main__":
    cli()

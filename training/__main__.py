"""`python -m training`: train a reranker on the public corpora or on texts of your own."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from training.recipe import RECIPES, bi_encoders, default_base, pick_device
from training.tables import print_gains, print_places, print_reliability

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

WORKERS = max(0, len(os.sched_getaffinity(0)) - 1)

Groups = Annotated[Path, typer.Argument(help="Folder of groups", exists=True, file_okay=False)]
Output = Annotated[Path, typer.Option(help="Folder to make")]
Base = Annotated[str | None, typer.Option(help="Bi-encoder to start from: folder or hub id; default all-MiniLM-L6-v2")]
E5 = Annotated[str | None, typer.Option(help="multilingual-e5 as a second teacher: folder or hub id")]
Size = Annotated[int, typer.Option(help="Documents of a group", min=2)]
Rows = Annotated[int, typer.Option(help="Pairs computed at a time", min=1)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda[:N]")]
Seed = Annotated[int, typer.Option(help="Of all that is drawn at random")]


@cli.callback()
def setup() -> None:
    """Train a reranker on the public corpora or on texts of your own."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for library in ("httpx", "bm25s"):
        logging.getLogger(library).addFilter(lambda record: record.levelno >= logging.WARNING)


@cli.command()
def run(
    data: Annotated[Path, typer.Argument(help="Folder of the public corpora", exists=True, file_okay=False)],
    output: Output,
    base: Base = None,
    e5: E5 = None,
    start: Annotated[str | None, typer.Option(help="Cross-encoder to go on from (default: the bi-encoder)")] = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """The whole recipe of the default model, as large as the device allows. Steps that are done are not done again."""
    with _told():
        from training.recipe import follow

        device = pick_device(device)
        recipe = RECIPES["cuda" if device.startswith("cuda") else "cpu"]
        print_reliability(follow(recipe, data, output, base or default_base(), e5, start, device, seed))


@cli.command()
def prepare(
    data: Annotated[Path, typer.Argument(help="Folder of the public corpora", exists=True, file_okay=False)],
    output: Output,
    base: Base = None,
    e5: E5 = None,
    questions: Annotated[int, typer.Option(help="Of each corpus at most")] = RECIPES["cpu"].questions,
    size: Size = RECIPES["cpu"].size,
    passages: Annotated[int, typer.Option(help="Of each corpus at most")] = RECIPES["cpu"].passages,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Make groups of the public corpora."""
    with _told():
        from training.prepare import prepare

        signals = bi_encoders(base or default_base(), e5, pick_device(device))
        prepare(data, output, signals, questions=questions, size=size, passages=passages, seed=seed)


@cli.command()
def prepare_own(
    file: Annotated[Path, typer.Argument(help="JSONL of {query, positives, negatives}", exists=True, dir_okay=False)],
    output: Output,
    base: Base = None,
    e5: E5 = None,
    size: Size = 8,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Make groups of your own texts. Negatives that are missing are found among the other documents."""
    with _told():
        from training.prepare import prepare_own

        prepare_own(file, output, bi_encoders(base or default_base(), e5, pick_device(device)), size=size, seed=seed)


@cli.command()
def teach(
    groups: Groups,
    output: Output,
    model: Annotated[list[str], typer.Option(help="Cross-encoder: folder or hub id; several are averaged")],
    keep: Annotated[int | None, typer.Option(help="Keep so many documents of each group, the hardest")] = None,
    device: Device = "auto",
) -> None:
    """Add the scores of trained models to the groups, as targets and to find the hardest documents."""
    with _told():
        from training.recipe import teach_folder

        teach_folder(groups, output, model, keep, pick_device(device))


@cli.command()
def train(
    groups: Groups,
    output: Output,
    start: Annotated[str | None, typer.Option(help="Encoder or cross-encoder to start from: folder or hub id")] = None,
    steps: Annotated[int | None, typer.Option(help="Default: once through all groups")] = None,
    cool_down: Annotated[
        int | None, typer.Option(help="Steps at the end in which the learning rate falls; default: a third", min=0)
    ] = None,
    groups_per_step: Annotated[int, typer.Option(min=1)] = 8,
    learning_rate: Annotated[float, typer.Option()] = RECIPES["cpu"].learning_rate,
    layers: Annotated[int | None, typer.Option(help="Repeat the layers to have so many, for a teacher")] = None,
    rows: Rows = 16,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Train a cross-encoder and calibrate its scores; started again, it goes on where it stopped.

    A training that is to go on later has steps and --cool-down 0. To make a model of it at any time, copy its folder
    and go on in the copy for some more steps with a --cool-down of as many.
    """
    with _told():
        from training.recipe import train_folder
        from training.schedule import Plan

        falling = (steps or 0) // 3 if cool_down is None else cool_down
        plan = Plan(steps or 0, groups_per_step, learning_rate, rows, seed, falling)
        print_reliability(train_folder(groups, output, start or default_base(), plan, pick_device(device), layers))


@cli.command()
def train_gpu(
    groups: Groups,
    output: Output,
    start: Annotated[str | None, typer.Option(help="BERT model to start from: folder or hub id")] = None,
    epochs: Annotated[int, typer.Option(help="Times to read all groups", min=1)] = 1,
    steps: Annotated[int, typer.Option(help="Steps in place of epochs; 0: by epochs", min=0)] = 0,
    groups_per_step: Annotated[int, typer.Option(min=1)] = RECIPES["cuda"].groups_per_step,
    learning_rate: Annotated[float, typer.Option()] = RECIPES["cuda"].learning_rate,
    layers: Annotated[int | None, typer.Option(help="Repeat the layers to have this many, for a teacher")] = None,
    workers: Annotated[int, typer.Option(help="Processes that assemble batches", min=0)] = WORKERS,
    rows: Rows = RECIPES["cuda"].rows,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Train a BERT model on a GPU, many times as fast as `train`, and calibrate its scores.

    It keeps no checkpoints and needs groups with the same number of documents; smaller groups are skipped.
    """
    with _told():
        from training.recipe import train_gpu_folder
        from training.schedule import Plan

        plan = Plan(steps, groups_per_step, learning_rate, rows, seed, steps // 3, epochs=epochs)
        start = start or default_base()
        print_reliability(train_gpu_folder(groups, output, start, plan, pick_device(device), layers, workers))


@cli.command()
def average(
    models: Annotated[list[str], typer.Argument(help="Folders of models of one shape")],
    groups: Annotated[Path, typer.Option(help="Folder of groups, to calibrate on", exists=True, file_okay=False)],
    output: Output,
    rows: Rows = 16,
    device: Device = "auto",
) -> None:
    """Average the weights of models of several trainings, and calibrate the result."""
    with _told():
        from training.recipe import average_folders

        print_reliability(average_folders(models, groups, output, rows, pick_device(device)))


@cli.command()
def validate(
    model: Annotated[str, typer.Argument(help="Cross-encoder: folder or hub id")],
    data: Annotated[Path, typer.Option(help="Folder of the public corpora", exists=True, file_okay=False)],
    dev: Annotated[Path | None, typer.Option(help="Folder of judged sets, measured too", file_okay=False)] = None,
    queries: Annotated[int, typer.Option(help="Of each domain", min=1)] = 40,
    dev_queries: Annotated[int | None, typer.Option(help="Of each judged set; default: all", min=1)] = None,
    max_length: Annotated[int, typer.Option(help="Tokens of a pair that are read", min=8)] = 512,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Measure a model on the corpora that no training reads, against BM25, and on long documents."""
    with _told():
        from training.judge import Judge
        from training.validation import compare, dev_sets, domains, long_documents

        judge = Judge(model, pick_device(device), max_length)
        held_out = dict(domains(data, queries, seed))
        print_gains(
            f"{model}, {max_length} tokens", [compare(name, topics, judge) for name, topics in held_out.items()]
        )
        if dev:
            sets = dev_sets(dev, dev_queries)
            print_gains("Judged sets", [compare(name, topics, judge) for name, topics in sets])
        topics = [topic for each in held_out.values() for topic in each[: -(-queries // len(held_out))]]
        print_places(long_documents(topics, judge, seed))


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong with files or models is told in one line."""
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    cli()

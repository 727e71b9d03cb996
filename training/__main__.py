"""`python -m training`: train a reranker on the public corpora or on texts of your own."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from app.machine.hardware import cpu_limit
from training.recipe import RECIPES, bi_encoders, default_base, pick_device
from training.tables import print_gains, print_places, print_reliability

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

WORKERS = cpu_limit() - 1

Groups = Annotated[Path, typer.Argument(help="Folder of groups", exists=True, file_okay=False)]
Output = Annotated[Path, typer.Option(help="Folder to create")]
Base = Annotated[str | None, typer.Option(help="Bi-encoder: folder or hub id; default: all-MiniLM-L6-v2")]
E5 = Annotated[str | None, typer.Option(help="multilingual-e5, a second teacher: folder or hub id")]
Size = Annotated[int, typer.Option(help="Documents per group", min=2)]
Rows = Annotated[int, typer.Option(help="Pairs per forward pass", min=1)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda[:N]")]
Seed = Annotated[int, typer.Option(help="Random seed")]


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
    start: Annotated[str | None, typer.Option(help="Cross-encoder to start from; default: the bi-encoder")] = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Follow the recipe of the default model, scaled to the device. Finished steps are not repeated."""
    with _one_line_errors():
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
    questions: Annotated[int, typer.Option(help="Maximum questions per corpus")] = RECIPES["cpu"].questions,
    size: Size = RECIPES["cpu"].size,
    passages: Annotated[int, typer.Option(help="Maximum passages per corpus")] = RECIPES["cpu"].passages,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Build training groups from the public corpora."""
    with _one_line_errors():
        from training.prepare import prepare

        signals = bi_encoders(base or default_base(), e5, pick_device(device))
        prepare(data, output, signals, questions=questions, size=size, passages=passages, seed=seed)


@cli.command()
def prepare_own(
    file: Annotated[Path, typer.Argument(help="JSONL with query, positives, negatives", exists=True, dir_okay=False)],
    output: Output,
    base: Base = None,
    e5: E5 = None,
    size: Size = 8,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Build training groups from your own texts. Missing negatives are chosen from the other documents."""
    with _one_line_errors():
        from training.prepare import prepare_own

        prepare_own(file, output, bi_encoders(base or default_base(), e5, pick_device(device)), size=size, seed=seed)


@cli.command()
def teach(
    groups: Groups,
    output: Output,
    model: Annotated[
        list[str], typer.Option(help="Cross-encoder: folder or hub id, or folder of an export; repeatable")
    ],
    keep: Annotated[int | None, typer.Option(help="Keep only this many documents of each group, the hardest")] = None,
    device: Device = "auto",
) -> None:
    """Add the mean scores of trained models to the groups as targets. With --keep, select the hardest documents."""
    with _one_line_errors():
        from training.recipe import teach_folder

        teach_folder(groups, output, model, keep, pick_device(device))


@cli.command()
def train(
    groups: Groups,
    output: Output,
    start: Annotated[str | None, typer.Option(help="Model to start from: folder or hub id")] = None,
    steps: Annotated[int | None, typer.Option(help="Default: every group once")] = None,
    cool_down: Annotated[
        int | None, typer.Option(help="Final steps with a falling learning rate; default: a third", min=0)
    ] = None,
    groups_per_step: Annotated[int, typer.Option(min=1)] = 8,
    learning_rate: Annotated[float, typer.Option()] = RECIPES["cpu"].learning_rate,
    layers: Annotated[int | None, typer.Option(help="Repeat the layers to have this many, for a teacher")] = None,
    rows: Rows = 16,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Train a cross-encoder and calibrate its scores. If interrupted, run the same command again to resume.

    For an open-ended training, set --steps and --cool-down 0. To get a model from it, copy the folder and train the
    copy for some more steps, with --cool-down set to their number.
    """
    with _one_line_errors():
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
    epochs: Annotated[int, typer.Option(help="Passes over all groups", min=1)] = 1,
    steps: Annotated[int, typer.Option(help="Number of steps, replaces --epochs; 0: use --epochs", min=0)] = 0,
    groups_per_step: Annotated[int, typer.Option(min=1)] = RECIPES["cuda"].groups_per_step,
    learning_rate: Annotated[float, typer.Option()] = RECIPES["cuda"].learning_rate,
    layers: Annotated[int | None, typer.Option(help="Repeat the layers to have this many, for a teacher")] = None,
    workers: Annotated[int, typer.Option(help="Processes that assemble batches", min=0)] = WORKERS,
    rows: Rows = RECIPES["cuda"].rows,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Train a BERT model on a GPU and calibrate its scores. Faster than `train`, without checkpoints.

    Groups with fewer documents than most are skipped; extra documents are dropped.
    """
    with _one_line_errors():
        from training.recipe import train_gpu_folder
        from training.schedule import Plan

        plan = Plan(steps, groups_per_step, learning_rate, rows, seed, steps // 3, epochs=epochs)
        start = start or default_base()
        print_reliability(train_gpu_folder(groups, output, start, plan, pick_device(device), layers, workers))


@cli.command()
def average(
    models: Annotated[list[str], typer.Argument(help="Folders of models with the same architecture")],
    groups: Annotated[Path, typer.Option(help="Folder of groups to calibrate on", exists=True, file_okay=False)],
    output: Output,
    rows: Rows = 16,
    device: Device = "auto",
) -> None:
    """Average the weights of several models and calibrate the result."""
    with _one_line_errors():
        from training.recipe import average_folders

        print_reliability(average_folders(models, groups, output, rows, pick_device(device)))


@cli.command()
def validate(
    model: Annotated[str, typer.Argument(help="Cross-encoder: folder or hub id")],
    data: Annotated[Path, typer.Option(help="Folder of the public corpora", exists=True, file_okay=False)],
    dev: Annotated[Path | None, typer.Option(help="Folder of labelled sets to measure too", file_okay=False)] = None,
    queries: Annotated[int, typer.Option(help="Queries per corpus", min=1)] = 40,
    windows: Annotated[
        bool, typer.Option("--windows", help="Read longer documents in windows of --max-length, as the service does")
    ] = False,
    languages: Annotated[bool, typer.Option("--languages", help="Validate on other languages than English")] = False,
    dev_queries: Annotated[int | None, typer.Option(help="Queries per labelled set; default: all", min=1)] = None,
    max_length: Annotated[int, typer.Option(help="Tokens to read of a pair", min=8)] = 512,
    fusion_weight: Annotated[float, typer.Option(help="Rank with fusion=lexical and this weight", min=0)] = 0,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Compare a model with BM25 on corpora outside the training data, and measure it on long documents."""
    with _one_line_errors():
        from training.judge import Judge
        from training.sources import LANGUAGES, VALIDATION
        from training.validation import compare, dev_sets, domains, long_documents

        judge = Judge(model, pick_device(device), max_length, windows)
        held_out = dict(domains(data, queries, seed, LANGUAGES if languages else VALIDATION))
        print_gains(
            f"{model}, {'windows of ' if windows else ''}{max_length} tokens, fusion weight {fusion_weight:g}",
            [compare(name, topics, judge, fusion_weight) for name, topics in held_out.items()],
        )
        if dev:
            sets = dev_sets(dev, dev_queries)
            print_gains("Labelled sets", [compare(name, topics, judge, fusion_weight) for name, topics in sets])
        topics = [topic for each in held_out.values() for topic in each[: -(-queries // len(held_out))]]
        print_places(long_documents(topics, judge, seed))


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Report errors in files and models in one line, without a traceback."""
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    cli()

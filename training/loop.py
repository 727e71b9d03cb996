"""The training loop: listwise distillation, resumable at every checkpoint."""

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional

from training.groups import Group
from training.model import CrossEncoder
from training.quality import accuracy

log = logging.getLogger(__name__)

# Most steps read short texts, which is where the time goes; some read long ones, so that the model knows them.
MAX_LENGTHS = (128, 128, 224)
LABEL_WEIGHT = 0.2
WARM_UP = 0.06
MAX_NORM = 1.0
# The weights kept are an average over the last steps, this slow to forget.
AVERAGE = 0.995
CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train: the same plan on the same groups gives the same order of groups."""

    steps: int
    groups_per_step: int = 8
    learning_rate: float = 5e-5
    rows: int = 16
    """Pairs computed at a time."""
    seed: int = 0
    checkpoint_every: int = 100
    evaluate_every: int = 500
    epochs: int = 1
    """Times through all groups, where no steps are given."""


class Training:
    """Owns the model, the optimizer and the average of the weights."""

    def __init__(self, model: CrossEncoder, plan: Plan, groups: Sequence[Group], output: Path) -> None:
        self._model, self._plan, self._groups, self._output = model, plan, groups, output
        trained = dict(model.trained())
        decayed = [each for each in trained.values() if each.ndim > 1]
        plain = [each for each in trained.values() if each.ndim <= 1]
        self._optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}], lr=plan.learning_rate
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._rate)
        self._average: dict[str, Tensor] = {name: each.detach().clone() for name, each in trained.items()}
        self._step = 0

    def run(self, held_out: Sequence[Group]) -> None:
        """Train to the end of the plan, from the last checkpoint if there is one; the model is the average then."""
        self._resume()
        torch.manual_seed(self._plan.seed + self._step)
        self._model.model.train()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            task = progress.add_task("training", total=self._plan.steps, completed=self._step)
            losses: list[float] = []
            started = monotonic()
            for groups in self._batches():
                losses.append(self._learn(groups))
                progress.update(task, advance=1, description=f"loss {sum(losses[-50:]) / len(losses[-50:]):.3f}")
                if self._step % self._plan.checkpoint_every == 0:
                    pace = (monotonic() - started) / len(losses)
                    log.info(
                        "step %d, loss %.4f, %.2f s a step", self._step, sum(losses[-100:]) / len(losses[-100:]), pace
                    )
                    self._save_checkpoint()
                if held_out and self._step % self._plan.evaluate_every == 0:
                    log.info("step %d: %s", self._step, accuracy(self._model, held_out, self._plan.rows))
        self._model.model.load_state_dict(self._average, strict=False)
        if held_out:
            log.info("averaged: %s", accuracy(self._model, held_out, self._plan.rows))

    def clear(self) -> None:
        """Forget the checkpoint: the model is saved."""
        (self._output / CHECKPOINT).unlink(missing_ok=True)

    def _rate(self, step: int) -> float:
        """Of the learning rate: up, then down to nothing, both straight."""
        warm_up = max(1, round(self._plan.steps * WARM_UP))
        return min((step + 1) / warm_up, (self._plan.steps - step) / max(1, self._plan.steps - warm_up))

    def _batches(self) -> Iterator[list[Group]]:
        size, count = self._plan.groups_per_step, len(self._groups)
        while self._step < self._plan.steps:
            epoch, first = divmod(self._step * size, count)
            order = _order(count, self._plan.seed + epoch) + _order(count, self._plan.seed + epoch + 1)[:size]
            yield [self._groups[at] for at in order[first : first + size]]

    def _learn(self, groups: Sequence[Group]) -> float:
        pairs = [(group.query, document) for group in groups for document in group.documents]
        max_length = MAX_LENGTHS[self._step % len(MAX_LENGTHS)]
        logits = self._model.logits(pairs, max_length, self._plan.rows)
        loss = listwise(logits, groups)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([each for _, each in self._model.trained()], MAX_NORM)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        self._step += 1
        # At first the average would be mostly of the start.
        slow = min(AVERAGE, self._step / (self._step + 10))
        for name, each in self._model.trained():
            self._average[name].lerp_(each.detach(), 1 - slow)
        return float(loss.detach())

    def _save_checkpoint(self) -> None:
        self._output.mkdir(parents=True, exist_ok=True)
        state: dict[str, Any] = {
            "plan": self._plan,
            "step": self._step,
            "model": dict(self._model.trained()),
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
        }
        part = self._output / f"{CHECKPOINT}.part"
        torch.save(state, part)
        part.replace(self._output / CHECKPOINT)

    def _resume(self) -> None:
        file = self._output / CHECKPOINT
        if not file.exists():
            return
        state = torch.load(file, map_location=self._model.device, weights_only=False)
        if state["plan"] != self._plan:
            raise ValueError(f"{file} is of another plan: {state['plan']}")
        self._model.model.load_state_dict(state["model"], strict=False)
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._average, self._step = state["average"], state["step"]
        log.info("going on at step %d", self._step)


def listwise(logits: Tensor, groups: Sequence[Group]) -> Tensor:
    """The divergence of each group's order from its targets, and of each logit from its label.

    Shapes: `logits` (documents of all groups,) to a scalar.
    """
    total = logits.new_zeros(())
    of_groups = logits.split([len(group.documents) for group in groups])
    for group, own in zip(groups, of_groups, strict=True):
        targets = torch.tensor(group.targets(), device=logits.device).softmax(0)
        labels = torch.tensor(group.labels, device=logits.device)
        total = total + functional.kl_div(own.log_softmax(0), targets, reduction="sum")
        total = total + LABEL_WEIGHT * functional.binary_cross_entropy_with_logits(own, labels)
    return total / len(groups)


def _order(count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order

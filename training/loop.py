"""The training loop: listwise distillation with checkpoints to resume from."""

import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from training.groups import Group
from training.lengthening import Lengthener
from training.model import CrossEncoder
from training.quality import accuracy
from training.schedule import LONG, Plan

log = logging.getLogger(__name__)

LABEL_WEIGHT = 0.2
MAX_NORM = 1.0
# Decay of the exponential average of the weights, which becomes the model.
AVERAGE = 0.998
CHECKPOINT = "checkpoint.pt"


class Training:
    """Owns the float32 weights, their average and the optimizer. The model computes with a copy of them."""

    def __init__(self, model: CrossEncoder, plan: Plan, groups: Sequence[Group], output: Path) -> None:
        self._model, self._plan, self._groups, self._output = model, plan, groups, output
        self._lengthener = Lengthener(model.tokenizer, [text for group in groups for text in group.documents])
        self._weights: dict[str, Tensor] = {name: each.detach().clone() for name, each in model.trained()}
        self._average = {name: each.clone() for name, each in self._weights.items()}
        states = model.model.state_dict()
        self._frozen = {name: each.clone() for name, each in states.items() if name not in self._weights}
        self._optimizer = make_optimizer(list(self._weights.values()))
        self._step = 0

    def run(self, held_out: Sequence[Group]) -> None:
        """Train to the end of the plan, from the last checkpoint if there is one; the model gets the averaged weights.

        On SIGTERM, finishes the step, saves a checkpoint and raises `KeyboardInterrupt`.
        """
        self._resume()
        self._model.model.train().to(self._model.dtype)
        losses: list[float] = []
        started, read = monotonic(), self._model.tokens_read
        with _stop_requested() as stop:
            while self._step < self._plan.steps:
                losses.append(self._learn())
                if self._step % self._plan.checkpoint_every == 0 or stop:
                    pace = (monotonic() - started) / len(losses)
                    speed = (self._model.tokens_read - read) / (monotonic() - started)
                    recent = losses[-100:]
                    log.info(
                        "step %d, loss %.4f, %.2f s a step, %.0f tokens/s",
                        self._step, sum(recent) / len(recent), pace, speed,
                    )  # fmt: skip
                    self._save_checkpoint()
                if stop:
                    raise KeyboardInterrupt
                if held_out and self._step % self._plan.evaluate_every == 0:
                    log.info("step %d: %s", self._step, accuracy(self._model, held_out, self._plan.rows))
        self._model.model.float().load_state_dict(self._frozen | self._average)
        if held_out:
            log.info("averaged: %s", accuracy(self._model, held_out, self._plan.rows))

    def clear(self) -> None:
        """Delete the checkpoint, once the model is saved."""
        (self._output / CHECKPOINT).unlink(missing_ok=True)

    def _learn(self) -> float:
        reading = self._plan.reading(self._step, len(self._groups))
        groups = [self._groups[at] for at in reading.groups]
        texts = [
            self._lengthener.documents(group, min(LONG, self._model.window), reading.rng)
            if reading.tokens == LONG
            else group.documents
            for group in groups
        ]
        pairs = [(group.query, text) for group, own in zip(groups, texts, strict=True) for text in own]
        loss = listwise(self._model.logits(pairs, reading.tokens, self._plan.rows), groups)
        loss.backward()
        self._improve(self._plan.rate(self._step))
        self._step += 1
        # Early on, a slow average would mostly hold the starting weights.
        slow = min(AVERAGE, self._step / (self._step + 10))
        for name, each in self._weights.items():
            self._average[name].lerp_(each, 1 - slow)
        return float(loss.detach())

    def _improve(self, rate: float) -> None:
        """Update the float32 weights and copy them to the model."""
        computed = dict(self._model.trained())
        for name, each in self._weights.items():
            each.grad = computed[name].grad.float() if computed[name].grad is not None else None
            computed[name].grad = None
        torch.nn.utils.clip_grad_norm_(list(self._weights.values()), MAX_NORM)
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = rate
        self._optimizer.step()
        self._to_model()

    def _to_model(self) -> None:
        with torch.no_grad():
            for name, each in self._model.trained():
                each.copy_(self._weights[name])

    def _save_checkpoint(self) -> None:
        self._output.mkdir(parents=True, exist_ok=True)
        state: dict[str, Any] = {
            "plan": self._plan.identity(),
            "step": self._step,
            "weights": self._weights,
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
        }
        part = self._output / f"{CHECKPOINT}.part"
        torch.save(state, part)
        part.replace(self._output / CHECKPOINT)

    def _resume(self) -> None:
        file = self._output / CHECKPOINT
        if not file.exists():
            return
        state = torch.load(file, map_location=self._model.device)
        if state["plan"] != self._plan.identity():
            raise ValueError(f"{file} was made with other options: {state['plan']}. Use them, or delete the file")
        self._optimizer.load_state_dict(state["optimizer"])
        for name, each in self._weights.items():
            each.copy_(state["weights"][name])
        self._average, self._step = state["average"], state["step"]
        self._to_model()
        log.info("Resuming at step %d", self._step)


def make_optimizer(weights: Sequence[Tensor], fused: bool | None = None) -> torch.optim.AdamW:
    """AdamW that decays matrices only, not biases and norms. The learning rate is set at each step."""
    decayed = [each for each in weights if each.ndim > 1]
    plain = [each for each in weights if each.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}], fused=fused
    )


@contextmanager
def _stop_requested() -> Iterator[list[int]]:
    """Yields a list that SIGTERM adds to."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def listwise(logits: Tensor, groups: Sequence[Group]) -> Tensor:
    """Loss: KL divergence of each group from its targets, plus a share of the cross-entropy with the labels.

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

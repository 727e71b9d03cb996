"""Training at the speed of a GPU: prepared batches, weights in bfloat16, one CUDA graph for each shape of a batch.

`training.loop` is the loop for CPUs and for other architectures: there Python starts every kernel, and a small model
leaves the GPU idle most of the time.
"""

import logging
from collections.abc import Iterator
from time import monotonic
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from training.batches import Batch, Batches
from training.bert import Bert
from training.loop import AVERAGE, LABEL_WEIGHT, MAX_NORM, make_optimizer
from training.schedule import Plan

log = logging.getLogger(__name__)

LOG_SECONDS = 15
# Runs of a new shape before it is recorded: libraries choose their kernels and take their memory in the first.
RUNS_BEFORE_RECORDING = 2
BATCHES_AHEAD = 6


def loss_of(logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """`training.loop.listwise` for groups of one size. Shapes: (rows,) and twice (groups, documents), to a scalar."""
    own = logits.view(targets.shape)
    divergence = functional.kl_div(own.log_softmax(1), targets.softmax(1), reduction="batchmean")
    return divergence + LABEL_WEIGHT * functional.binary_cross_entropy_with_logits(own, labels)


class Recording(NamedTuple):
    """A recorded step: it reads the tensors in `inputs`, and a replay writes `loss` and `gradients`."""

    graph: Any
    inputs: Batch
    loss: Tensor
    gradients: list[Tensor]


class Gradients:
    """Computes the loss and the gradients of a batch."""

    def __init__(self, network: Bert) -> None:
        self._network, self._parameters = network, network.trained()
        self._recordings: dict[tuple[int, ...], Recording | None] = {}

    def of(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The tensors are valid until the next call."""
        if batch.ids.device.type != "cuda":
            return self._computed(batch)
        shape = tuple(batch.ids.shape)
        if shape not in self._recordings:
            self._recordings[shape] = self._record(batch)
        recording = self._recordings[shape]
        if recording is None:
            return self._computed(batch)
        for static, value in zip(recording.inputs, batch, strict=True):
            static.copy_(value, non_blocking=True)
        recording.graph.replay()
        return recording.loss, recording.gradients

    def _computed(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        for parameter in self._parameters:
            parameter.grad = None
        ids, lengths, starts, targets, labels = batch
        loss = loss_of(self._network(ids, lengths, starts), targets, labels)
        loss.backward()
        return loss.detach(), [parameter.grad for parameter in self._parameters]

    def _record(self, batch: Batch) -> Recording | None:
        """None where the driver refuses: the training goes on without the graph, only slower."""
        inputs = Batch(*(each.clone() for each in batch))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(RUNS_BEFORE_RECORDING):
                self._computed(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Only this thread is recorded: the one that pins batches calls CUDA at the same time.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                loss, gradients = self._computed(inputs)
        except RuntimeError:
            log.warning("No CUDA graph for batches of shape %s", tuple(batch.ids.shape), exc_info=True)
            return None
        return Recording(graph, inputs, loss, gradients)


class DeviceTraining:
    """Owns the weights in float32, their average and the optimizer; the network computes with a copy.

    The copy is in bfloat16 on a GPU. There are no checkpoints: a run takes minutes.
    """

    def __init__(self, network: Bert, device: str, plan: Plan) -> None:
        self._device, self._plan = torch.device(device), plan
        dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        self._names = [name for name, each in network.named_parameters() if each.requires_grad]
        self._network: Bert = network.to(self._device, dtype)
        self._computing = network.trained()
        self._weights = [each.detach().float().clone() for each in self._computing]
        self._average = [each.clone() for each in self._weights]
        for each in self._weights:
            each.grad = torch.zeros_like(each)
        self._optimizer = make_optimizer(self._weights, fused=self._device.type == "cuda")
        self._gradients = Gradients(network)

    def run(self, batches: Batches, workers: int) -> dict[str, Tensor]:
        """Train to the end of the plan. Returns the averaged weights, by the names that transformers gives them.

        `workers`: processes that assemble batches; with 0 this process does it between the steps.
        """
        progress = Progress(self._plan.steps, self._device)
        for step, batch in enumerate(self._loaded(batches, workers)):
            progress.add(self._learn(step, batch), batch)
        return self._network.transformers_weights(dict(zip(self._names, self._average, strict=True)))

    def _loaded(self, batches: Batches, workers: int) -> Iterator[Batch]:
        loader = torch.utils.data.DataLoader(
            batches,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=BATCHES_AHEAD if workers else None,
            pin_memory=self._device.type == "cuda",
        )
        for batch in loader:
            yield Batch(*(each.to(self._device, non_blocking=True) for each in batch))

    def _learn(self, step: int, batch: Batch) -> Tensor:
        loss, gradients = self._gradients.of(batch)
        with torch.no_grad():
            torch._foreach_copy_([each.grad for each in self._weights], gradients)
            torch.nn.utils.clip_grad_norm_(self._weights, MAX_NORM)
            for parameters in self._optimizer.param_groups:
                parameters["lr"] = self._plan.rate(step)
            self._optimizer.step()
            torch._foreach_copy_(self._computing, self._weights)
            # Early in the training, an average that forgets slowly would mostly hold the starting weights.
            slow = min(AVERAGE, (step + 1) / (step + 11))
            torch._foreach_lerp_(self._average, self._weights, 1 - slow)
        return loss


class Progress:
    """Logs the loss and the speed now and then. It reads from the device only to log, so the device never waits."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self._steps, self._done, self._started = steps, 0, monotonic()
        self._loss, self._tokens = torch.zeros((), device=device), torch.zeros((), dtype=torch.long, device=device)
        self._logged = self._started, 0

    def add(self, loss: Tensor, batch: Batch) -> None:
        """Count one more step."""
        self._done += 1
        self._loss += loss
        self._tokens += batch.lengths.sum()
        since, steps_before = self._logged
        if monotonic() - since > LOG_SECONDS or self._done == self._steps:
            speed = float(self._tokens) / (monotonic() - self._started)
            mean = float(self._loss) / (self._done - steps_before)
            log.info("step %d of %d, loss %.4f, %.0fk tokens/s", self._done, self._steps, mean, speed / 1000)
            self._loss.zero_()
            self._logged = monotonic(), self._done

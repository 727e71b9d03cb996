"""What a request costs: tokens, CPU time and energy of the engine, by its share of each batch."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from app.machine.cpu_time import EngineClock
from app.machine.energy import EnergyMeter
from app.telemetry.metrics import Metrics

INFERENCE = "inference"
"""The name of the threads that call the engine."""
# The name that is charged for work that no request asked for, such as a probe.
SERVICE = "service"


@dataclass(slots=True, eq=False)
class Bill:
    """The costs of one request so far."""

    caller: str
    """The name of its API key."""
    tokens: int = 0
    """Tokens that the model read for this request, padding excluded. Those of cached scores cost nothing."""
    cpu_ns: int = 0
    energy_uj: int | None = None
    """None if the machine has no counter of energy."""


current_bill: ContextVar[Bill] = ContextVar("bill")
"""The bill of the current request."""

Share = tuple[Bill | None, int]
"""Tokens of a batch, and who pays for them."""


@dataclass(slots=True, eq=False)
class _Run:
    weight: int
    cpu_ns: int = 0
    energy_uj: int = 0


class Ledger:
    """Divides what the engine uses among the running batches, and the costs of a batch among its requests.

    Both are divided by the number of computed tokens, in whole nanoseconds and microjoules: the sum of all bills is
    what the engine used while batches ran. Used on the event loop only.
    """

    def __init__(
        self, metrics: Metrics, energy: EnergyMeter | None = None, clock: Callable[[], int] | None = None
    ) -> None:
        """`clock`: CPU time of the engine, in nanoseconds."""
        self._metrics = metrics
        self._energy = energy
        self._clock = clock or EngineClock(INFERENCE).read
        self._running: list[_Run] = []
        self._cpu_ns = self._energy_uj = 0
        if energy:
            metrics.count_joules()

    @contextmanager
    def batch(self, shares: Sequence[Share], computed: Sequence[int] | None = None) -> Iterator[None]:
        """Measure the block as one batch. Its requests pay, even if it fails.

        `computed`: how many tokens are computed for each share, if these are not all.
        """
        self._measure()
        computed = [tokens for _, tokens in shares] if computed is None else computed
        run = _Run(sum(computed))
        self._running.append(run)
        try:
            yield
        finally:
            self._measure()
            self._running.remove(run)
            self._charge(run, shares, computed)

    def _measure(self) -> None:
        """Give what was used since the last call to the running batches."""
        cpu_ns, energy_uj = self._clock(), self._energy() if self._energy else 0
        weights = [run.weight for run in self._running]
        # The clock has several sources, so it may go back a little.
        used = divide(max(0, cpu_ns - self._cpu_ns), weights), divide(max(0, energy_uj - self._energy_uj), weights)
        for run, cpu, energy in zip(self._running, *used, strict=True):
            run.cpu_ns += cpu
            run.energy_uj += energy
        self._cpu_ns, self._energy_uj = max(self._cpu_ns, cpu_ns), max(self._energy_uj, energy_uj)

    def _charge(self, run: _Run, shares: Sequence[Share], computed: Sequence[int]) -> None:
        tokens: Counter[Bill] = Counter()
        weight: Counter[Bill] = Counter()
        nobody = Bill(SERVICE)
        for (bill, count), part in zip(shares, computed, strict=True):
            tokens[bill or nobody] += count
            weight[bill or nobody] += part
        weights = list(weight.values())
        parts = zip(tokens.items(), divide(run.cpu_ns, weights), divide(run.energy_uj, weights), strict=True)
        for (bill, count), cpu_ns, energy_uj in parts:
            bill.tokens += count
            bill.cpu_ns += cpu_ns
            if self._energy:
                bill.energy_uj = (bill.energy_uj or 0) + energy_uj
            self._metrics.observe_cost(bill.caller, count, cpu_ns / 1e9, energy_uj / 1e6 if self._energy else None)


def divide(total: int, weights: Sequence[int]) -> list[int]:
    """The total in whole parts, in proportion to the weights. The parts add up to the total exactly."""
    parts, given, weight_so_far, weight = [], 0, 0, sum(weights) or 1
    for each in weights:
        weight_so_far += each
        part = total * weight_so_far // weight - given
        given += part
        parts.append(part)
    return parts

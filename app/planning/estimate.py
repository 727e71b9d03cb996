"""How long requests wait at a load: the M/G/1 queue, with measured times.

Requests arrive at random (Poisson) at `rate` per second. Each occupies the engine for a time S and they are served in
their order. With the utilisation u = rate * E[S], the wait W is a sum of a random number of remainders of S (Pollaczek
and Khinchine): P(n remainders) = (1 - u) * u^n, and the remainder has the density P(S > t) / E[S]. The mean of W is
u * E[S] * (1 + c²) / (2 * (1 - u)) with c² = Var[S] / E[S]². A response takes W + R, where R is the time of a request
on an idle service.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

# Steps of the grid in a mean service time.
STEPS = 100
# The length of the grid in mean waits, about: beyond it the share of waits is below 1e-15.
LENGTH = 20
# Above this utilisation, a small error of the measurement makes waits many times as long.
HIGHEST_UTILISATION = 0.95
# The rate is found to this share of the capacity.
PRECISION = 1e-3


@dataclass(frozen=True, slots=True)
class Speed:
    """The speed of one replica for requests of one size. Times are in seconds."""

    alone: Sequence[float]
    """Response times of requests that were sent one after another."""
    capacity: float
    """Requests per second of a replica that is never idle."""

    @property
    def service(self) -> float:
        """The mean time for which a request occupies the engine. Less than its response time, if requests share batches
        or one is parsed while another is scored."""
        return 1 / self.capacity

    @property
    def services(self) -> Values:
        """Service times: the measured response times, scaled to the mean at full load."""
        times = np.asarray(self.alone)
        scaled: Values = times * (self.service / times.mean())
        return scaled

    @property
    def variation(self) -> float:
        """c²: the variance of the service time over the square of its mean."""
        return float(self.services.var() / self.service**2)

    def utilisation(self, rate: float) -> float:
        """The share of the time in which the engine is busy; 1 or more means that the queue grows."""
        return rate / self.capacity

    def mean_wait(self, rate: float) -> float:
        """The mean wait at this rate; infinite if the queue grows."""
        used = self.utilisation(rate)
        return used * self.service * (1 + self.variation) / (2 * (1 - used)) if used < 1 else math.inf

    def quantiles(self, rate: float, shares: Sequence[float]) -> list[float]:
        """The response times below which these shares of the responses are; infinite if the queue grows."""
        used = self.utilisation(rate)
        if used >= 1:
            return [math.inf] * len(shares)
        step = self.service / STEPS
        waits = wait_distribution(self.services, used, step)
        alone = np.sort(np.asarray(self.alone))
        return [_quantile(share, waits, step, alone) for share in shares]

    def highest_rate(self, seconds: float, share: float = 0.95) -> float:
        """The highest rate at which this share of the responses is within these seconds. 0 if there is none."""
        low, high = 0.0, self.capacity * HIGHEST_UTILISATION
        if self.quantiles(high, [share])[0] <= seconds:
            return high
        if self.quantiles(0.0, [share])[0] > seconds:
            return 0.0
        while high - low > PRECISION * self.capacity:
            middle = (low + high) / 2
            low, high = (middle, high) if self.quantiles(middle, [share])[0] <= seconds else (low, middle)
        return low


def wait_distribution(services: Values, used: float, step: float) -> Values:
    """P(W <= k * step) for k = 0, 1, …. `used`: the utilisation, below 1."""
    remainders = _remainders(services, step)
    variation = services.var() / services.mean() ** 2
    count = max(len(remainders), math.ceil(LENGTH * (1 + variation) / (1 - used) * services.mean() / step))
    # The transform of a sum of a geometric number of remainders.
    transform = (1 - used) / (1 - used * np.fft.rfft(remainders, count))
    return np.minimum(1.0, np.cumsum(np.fft.irfft(transform, count)))


def _remainders(services: Values, step: float) -> Values:
    """The distribution of what is left of a service in progress at a random moment, on a grid."""
    edges = (np.arange(math.ceil(services.max() / step) + 2) + 0.5) * step
    # The integral of P(S > t) up to an edge is the mean of min(S, edge).
    below = np.minimum(services[:, None], edges).mean(axis=0) / services.mean()
    masses: Values = np.diff(below, prepend=0.0)
    return masses


def _quantile(share: float, waits: Values, step: float, alone: Values) -> float:
    """The time below which this share of W + R is."""
    low, high = float(alone[0]), float(alone[-1]) + len(waits) * step
    grid = np.arange(len(waits)) * step
    while high - low > step / 10:
        middle = (low + high) / 2
        left = middle - alone
        reached = float(np.where(left >= 0, np.interp(left, grid, waits), 0.0).mean())
        low, high = (low, middle) if reached >= share else (middle, high)
    return high


def replicas_for(rate: float, highest: float) -> int:
    """Replicas that a load balancer needs if each serves `highest` requests per second."""
    return max(1, math.ceil(rate / highest - 1e-9))

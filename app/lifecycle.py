"""Which phase the process is in: loading → ready → draining, or failed. Health and the server read it."""

from enum import StrEnum


class Phase(StrEnum):
    """`failed` is final: the process ends with exit status 1."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Lifecycle:
    """Owns the phase, which only moves forward."""

    def __init__(self) -> None:
        self.phase = Phase.LOADING

    def ready(self) -> None:
        """Loading is done."""
        if self.phase is Phase.LOADING:
            self.phase = Phase.READY

    def drain(self) -> None:
        """Take no new work."""
        if self.phase is not Phase.FAILED:
            self.phase = Phase.DRAINING

    def fail(self) -> None:
        """There is nothing to serve with."""
        self.phase = Phase.FAILED

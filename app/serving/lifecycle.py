"""Which phase the process is in: loading → ready ⇄ reloading → draining, or failed. Health and the server read it."""

from enum import StrEnum


class Phase(StrEnum):
    """`failed` is final: the process ends with exit status 1."""

    LOADING = "loading"
    READY = "ready"
    RELOADING = "reloading"
    DRAINING = "draining"
    FAILED = "failed"


class Lifecycle:
    """Owns the phase. Draining and failed are never left for an earlier one."""

    def __init__(self) -> None:
        self.phase = Phase.LOADING

    def ready(self) -> None:
        """Loading is done."""
        if self.phase in (Phase.LOADING, Phase.RELOADING):
            self.phase = Phase.READY

    def reload(self) -> None:
        """The engine is broken and another one is on its way."""
        if self.phase is Phase.READY:
            self.phase = Phase.RELOADING

    def drain(self) -> None:
        """Take no new work."""
        if self.phase is not Phase.FAILED:
            self.phase = Phase.DRAINING

    def fail(self) -> None:
        """There is nothing to serve with."""
        self.phase = Phase.FAILED

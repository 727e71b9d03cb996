"""The phase of the process: loading → ready ⇄ reloading → draining, or failed. Health and the server read it."""

from enum import StrEnum


class Phase(StrEnum):
    """`failed` is final: the process exits with status 1."""

    LOADING = "loading"
    READY = "ready"
    RELOADING = "reloading"
    DRAINING = "draining"
    FAILED = "failed"


class Lifecycle:
    """Owns the phase. Draining and failed never return to an earlier phase."""

    def __init__(self) -> None:
        self.phase = Phase.LOADING

    def ready(self) -> None:
        """Loading has finished."""
        if self.phase in (Phase.LOADING, Phase.RELOADING):
            self.phase = Phase.READY

    def reload(self) -> None:
        """The engine is broken and is being loaded again."""
        if self.phase is Phase.READY:
            self.phase = Phase.RELOADING

    def drain(self) -> None:
        """Stop accepting work."""
        if self.phase is not Phase.FAILED:
            self.phase = Phase.DRAINING

    def fail(self) -> None:
        """No engine can be loaded."""
        self.phase = Phase.FAILED

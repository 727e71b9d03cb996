"""The phase of the process: loading → ready ⇄ reloading → leaving → draining, or failed. Health reads it."""

from enum import StrEnum


class Phase(StrEnum):
    """`failed` is final: the process exits with status 1."""

    LOADING = "loading"
    READY = "ready"
    RELOADING = "reloading"
    LEAVING = "leaving"
    DRAINING = "draining"
    FAILED = "failed"


class Lifecycle:
    """Owns the phase. Leaving, draining and failed never return to an earlier phase."""

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

    def leave(self) -> None:
        """Still serve, but report that the service is not ready. If nothing is served yet, drain at once."""
        if self.phase in (Phase.READY, Phase.RELOADING):
            self.phase = Phase.LEAVING
        else:
            self.drain()

    def drain(self) -> None:
        """Stop accepting work."""
        if self.phase is not Phase.FAILED:
            self.phase = Phase.DRAINING

    def fail(self) -> None:
        """No engine can be loaded."""
        self.phase = Phase.FAILED

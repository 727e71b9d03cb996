"""The phase of the process: loading → ready ⇄ reloading → leaving → draining, or failed. Health reads it.

If there are several models, each has a phase, too: loading → ready ⇄ reloading, or failed.
"""

from enum import StrEnum


class Phase(StrEnum):
    """`failed` is final: the process exits with status 1."""

    LOADING = "loading"
    READY = "ready"
    RELOADING = "reloading"
    LEAVING = "leaving"
    DRAINING = "draining"
    FAILED = "failed"


REASONS = {
    Phase.LOADING: "The model is still loading",
    Phase.RELOADING: "The engine failed and is being reloaded",
    Phase.LEAVING: "The service is about to shut down",
    Phase.DRAINING: "The service is shutting down and accepts no new requests",
    Phase.FAILED: "The service failed to start",
}


class Lifecycle:
    """Owns the phase. Leaving, draining and failed never return to an earlier phase."""

    def __init__(self) -> None:
        self.phase = Phase.LOADING

    @property
    def problem(self) -> str | None:
        """Why nothing is served; None if it is."""
        return REASONS.get(self.phase)

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

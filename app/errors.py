"""Everything that can go wrong, named once.

RerankerError
├── InvalidRequest      what was sent makes no sense
├── Unauthorized        no API key, or none of ours
├── TooLarge            what was sent is over a limit
├── BodyTimeout         the body did not arrive in time
├── UnsupportedMedia    the body is in a form that is not read
├── Refused             not now: try again after `retry_after` seconds
│   ├── QueueFull       no room to wait
│   ├── QueueTimeout    waited as long as allowed, got no slot
│   ├── BufferFull      the bodies of the requests in work take all the memory that they may
│   └── Unavailable     loading, draining or unhealthy
├── DeadlineExceeded    the caller's own deadline passed
├── ScoringFailed       the engine failed on the batch
│   └── OutOfMemory     the batch did not fit
└── StartupError        the process cannot serve at all: settings, device or model
    └── UnusableModel   on no engine: it cannot be loaded, or does not rank

Which HTTP status each becomes is decided in `app.api.errors`, and only there. Messages are written for the caller.
"""


class RerankerError(Exception):
    """Base of all errors whose message may be shown to a caller."""


class InvalidRequest(RerankerError):
    """The request is well-formed but asks for something impossible."""


class Unauthorized(RerankerError):
    """The request carries no API key, or none that is known."""


class TooLarge(RerankerError):
    """A document count, text or body is over its limit."""


class BodyTimeout(RerankerError):
    """The body did not arrive in time."""


class UnsupportedMedia(RerankerError):
    """The body is compressed."""


class Refused(RerankerError):
    """Not now: the caller may try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(Refused):
    """Every slot is taken and as many requests wait as may wait."""


class QueueTimeout(Refused):
    """The request waited its time and no slot came free."""


class BufferFull(Refused):
    """The bodies of the requests in work take all the memory that they may."""


class Unavailable(Refused):
    """The service is loading, draining or unhealthy."""


class DeadlineExceeded(RerankerError):
    """The caller's deadline passed before the scores were there."""


class ScoringFailed(RerankerError):
    """The engine failed, or gave a score that is not a number."""


class OutOfMemory(ScoringFailed):
    """The batch does not fit the device's memory."""


class StartupError(RerankerError):
    """The process cannot start: one line that says why, then exit status 1."""


class UnusableModel(StartupError):
    """The model cannot be loaded, or is no reranker: no other engine would help."""

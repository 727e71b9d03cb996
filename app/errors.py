"""Everything that can go wrong, named once.

RerankerError
├── InvalidRequest      what was sent makes no sense
├── Unauthorized        no API key, or none of ours
├── TooLarge            what was sent is over a limit
├── BodyTimeout         the body did not arrive in time
├── UnsupportedMedia    the body is in a form that is not read
├── Refused             not now: try again after `retry_after` seconds
│   ├── RateLimited     this API key has had its share
│   ├── QueueFull       no room to wait
│   ├── QueueTimeout    waited as long as allowed, got no slot
│   ├── BufferFull      the bodies of the requests in work take all the memory that they may
│   └── Unavailable     loading, reloading, draining or unhealthy
├── DeadlineExceeded    the caller's own deadline passed
├── ScoringFailed       the engine failed on the batch
│   └── OutOfMemory     the batch did not fit
├── EngineBroken        the engine hangs or only fails: it is to be loaded again
└── StartupError        the process cannot serve at all: settings, device or model
    └── UnusableModel   on no engine: it cannot be loaded, or does not rank

Which HTTP status each becomes is decided in `app.api.errors`, and only there. Messages are written for the caller,
`code` is the error's name for programs.
"""

from typing import ClassVar


class RerankerError(Exception):
    """Base of all errors whose message may be shown to a caller."""

    code: ClassVar[str] = "internal_error"


class InvalidRequest(RerankerError):
    """The request is well-formed but asks for something impossible."""

    code = "invalid_request"


class Unauthorized(RerankerError):
    """The request carries no API key, or none that is known."""

    code = "unauthorized"


class TooLarge(RerankerError):
    """A document count, text or body is over its limit."""

    code = "too_large"


class BodyTimeout(RerankerError):
    """The body did not arrive in time."""

    code = "body_timeout"


class UnsupportedMedia(RerankerError):
    """The body is compressed."""

    code = "unsupported_media"


class Refused(RerankerError):
    """Not now: the caller may try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimited(Refused):
    """This API key sends more at once, or more often, than one may."""

    code = "rate_limited"


class QueueFull(Refused):
    """Every slot is taken and as many requests wait as may wait."""

    code = "queue_full"


class QueueTimeout(Refused):
    """The request waited its time and no slot came free."""

    code = "queue_timeout"


class BufferFull(Refused):
    """The bodies of the requests in work take all the memory that they may."""

    code = "buffer_full"


class Unavailable(Refused):
    """The service is loading, reloading, draining or unhealthy."""

    code = "unavailable"


class DeadlineExceeded(RerankerError):
    """The caller's deadline passed before the scores were there."""

    code = "deadline_exceeded"


class ScoringFailed(RerankerError):
    """The engine failed, or gave a score that is not a number."""

    code = "scoring_failed"


class OutOfMemory(ScoringFailed):
    """The batch does not fit the device's memory."""

    code = "out_of_memory"


class EngineBroken(RerankerError):
    """The engine has hung, or fails batch after batch: it has to be loaded again.

    `scored` tells whether it had scored anything since it was loaded.
    """

    def __init__(self, message: str, scored: bool = False) -> None:
        super().__init__(message)
        self.scored = scored


class StartupError(RerankerError):
    """The process cannot start: one line that says why, then exit status 1."""


class UnusableModel(StartupError):
    """The model cannot be loaded, or is no reranker: no other engine would help."""


def first_line(error: BaseException) -> str:
    """What a library's error says, on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

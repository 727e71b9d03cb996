"""All errors of the service.

RerankerError
├── RequestError        the caller must change the request
│   ├── InvalidRequest  the request is invalid
│   ├── TooLarge        a document count, text or body exceeds its limit
│   ├── NotFound        a stored document, or the store itself, does not exist
│   └── UnknownModel    no model has the name in the request
├── Unauthorized        the API key is missing or unknown
├── BodyTimeout         the body did not arrive in time
├── UnsupportedMedia    the body is compressed
├── Refused             rejected for now: retry after `retry_after` seconds
│   ├── RateLimited     this API key exceeds its rate
│   ├── QueueFull       the queue is full
│   ├── QueueTimeout    no slot became free in time
│   ├── BufferFull      request bodies use all the memory that is allowed
│   └── Unavailable     loading, reloading, draining or unhealthy
├── DeadlineExceeded    the caller's deadline passed
├── ScoringFailed       the engine failed on the batch
│   └── OutOfMemory     the batch does not fit into memory
├── EngineBroken        the engine hangs or keeps failing, and must be reloaded
└── StartupError        the process cannot serve: settings, device or model
    ├── UnusableModel   no engine can load this model, or it is not a reranker
    └── NotStored       an export or a download cannot be stored
        └── UnwritableFolder   this process cannot write to the folder

`app.api.errors` maps them to HTTP. Messages are for the caller; `code` is the name for programs.
"""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

# Of a name in a message.
SHOWN_CHARS = 60
FULL = "Free some space, or set another folder"
REMEDIES = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EROFS: "Mount a writable volume there, or set another folder",
}


class RerankerError(Exception):
    """An error with a message that callers may see."""

    code: ClassVar[str] = "internal_error"


class RequestError(RerankerError):
    """The request cannot be served as it is. `field` is `query`, `documents` or an item of them: `documents[3]`.

    The message begins with the field. A dialect with another name for it replaces `field`.
    """

    def __init__(self, problem: str, field: str | None = None) -> None:
        super().__init__(problem)
        self.field = field

    def __str__(self) -> str:
        problem = super().__str__()
        return f"{self.field}: {problem}" if self.field else problem


class InvalidRequest(RequestError):
    """The request is well-formed, but a field or their combination is invalid."""

    code = "invalid_request"


class Unauthorized(RerankerError):
    """The API key is missing or unknown."""

    code = "unauthorized"


class UnknownModel(RequestError):
    """No model has the name in the request."""

    code = "model_not_found"

    def __init__(self, name: str, known: Sequence[str]) -> None:
        """`known`: the names of all models."""
        shown = name if len(name) <= SHOWN_CHARS else f"{name[:SHOWN_CHARS]}…"
        plural = "models" if len(known) > 1 else "model"
        super().__init__(f"there is no model {shown!r}; the service has the {plural} {', '.join(known)}", "model")


class TooLarge(RequestError):
    """A document count, text or body exceeds its limit."""

    code = "too_large"


class NotFound(RequestError):
    """There are no such stored documents, or none are stored at all."""

    code = "not_found"


class BodyTimeout(RerankerError):
    """The body did not arrive in time."""

    code = "body_timeout"


class UnsupportedMedia(RerankerError):
    """The body is compressed."""

    code = "unsupported_media"


class Refused(RerankerError):
    """Rejected for now: the caller may retry after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimited(Refused):
    """This API key exceeds its parallel requests or its rate."""

    code = "rate_limited"


class QueueFull(Refused):
    """All slots are taken and the queue is full."""

    code = "queue_full"


class QueueTimeout(Refused):
    """No slot became free within the queue timeout."""

    code = "queue_timeout"


class BufferFull(Refused):
    """Request bodies use all the memory that is allowed for them."""

    code = "buffer_full"


class Unavailable(Refused):
    """The service is loading, reloading, draining or unhealthy."""

    code = "unavailable"


class DeadlineExceeded(RerankerError):
    """The caller's deadline passed before the scores were there."""

    code = "deadline_exceeded"


class ScoringFailed(RerankerError):
    """The engine failed, or returned a score that is not a number."""

    code = "scoring_failed"


class OutOfMemory(ScoringFailed):
    """The batch does not fit into the device's memory."""

    code = "out_of_memory"


class EngineBroken(RerankerError):
    """The engine hangs or keeps failing, and must be reloaded.

    `scored`: whether it has scored any batch since it was loaded.
    """

    def __init__(self, message: str, scored: bool = False) -> None:
        super().__init__(message)
        self.scored = scored


class StartupError(RerankerError):
    """The process cannot start. It prints the message and exits with status 1."""


class UnusableModel(StartupError):
    """No engine can load this model, or it is not a reranker."""


class NotStored(StartupError):
    """An export or a download cannot be stored. Another engine or precision would not help."""


class UnwritableFolder(NotStored):
    """This process cannot write to the folder. `folder`: its owner is named."""

    def __init__(self, setting: str, error: OSError, folder: Path | None = None) -> None:
        who = f" by user {os.geteuid()}" if hasattr(os, "geteuid") else ""
        reason = f"{error.strerror or error}"
        remedy = REMEDIES.get(error.errno or 0, "Make the folder writable for this user, or set another one")
        if folder and error.errno in (errno.EACCES, errno.EPERM):
            reason += _owner(folder)
        super().__init__(f"{setting} cannot be written{who}: {reason}. {remedy}")


def _owner(folder: Path) -> str:
    """Whom the folder belongs to, or the one in which it would be created. Empty if the system does not say."""
    for known in (folder, *folder.parents):
        try:
            status = known.stat()
        except OSError:
            continue
        return f" ({known} belongs to user {status.st_uid} and group {status.st_gid}, mode {status.st_mode & 0o7777:o})"
    return ""


def first_line(error: BaseException) -> str:
    """The first line of a library's error message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

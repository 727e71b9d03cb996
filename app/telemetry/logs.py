"""Logging: one line per event on stderr, as text or as JSON."""

import json
import logging.config
import re
from contextvars import ContextVar

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

QUIET = ("httpx", "huggingface_hub", "opentelemetry", "sentence_transformers", "transformers", "urllib3", "filelock")
# Ray Serve adds its own time to every record.
RESERVED = [*RESERVED_ATTRS, "_ray_timestamp_ns"]
STANDARD = {*RESERVED, "message", "asctime"}
BARE = re.compile(r"[\w.:/%-]+")

request_id: ContextVar[str] = ContextVar("request_id")
"""The id of the current request. A batch serves several requests and has no id."""


def configure_logging(level: str, form: str = "console") -> None:
    """Log our messages from `level` on, and only warnings of libraries. `form` is `console` or `json`."""
    logging.captureWarnings(True)
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"console": {"()": ConsoleFormatter}, "json": {"()": _json_formatter}},
            "filters": {"request": {"()": lambda: _add_request_id}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": form, "filters": ["request"]}},
            "root": {"level": "WARNING", "handlers": ["stderr"]},
            "loggers": {
                "app": {"level": level.upper()},
                "uvicorn": {"level": "WARNING"},
                **{name: {"level": "ERROR"} for name in QUIET},
            },
        }
    )


class ConsoleFormatter(logging.Formatter):
    """The message, then the extra fields that it does not name.

    Client input cannot start a line or control a terminal: non-printable characters are escaped and tracebacks are
    indented.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = (
            f" {name}={_bare_or_quoted(value)}"
            for name, value in record.__dict__.items()
            if name not in STANDARD and f"%({name})" not in str(record.msg)
        )
        return _printable(super().formatMessage(record) + "".join(fields))

    def formatException(self, ei: "logging._SysExcInfoType") -> str:
        return "\n".join(f"  {_printable(line)}" for line in super().formatException(ei).split("\n"))


def _json_formatter() -> logging.Formatter:
    return JsonFormatter(
        "%(levelname)s %(name)s %(message)s",
        rename_fields={"levelname": "level", "name": "logger"},
        reserved_attrs=RESERVED,
        timestamp="time",
    )


def _add_request_id(record: logging.LogRecord) -> bool:
    if not hasattr(record, "id") and (current := request_id.get(None)):
        record.id = current
    return True


def _bare_or_quoted(value: object) -> str:
    return json.dumps(value) if isinstance(value, str) and not BARE.fullmatch(value) else str(value)


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)

"""Restores the logging of the process after a test."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logging_restored() -> Iterator[None]:
    """Undo `configure_logging` at the end of the block."""
    root, loggers = logging.getLogger(), (logging.getLogger("app"), logging.getLogger("uvicorn"))
    handlers, level, levels = root.handlers[:], root.level, [logger.level for logger in loggers]
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:], root.level = handlers, level
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)

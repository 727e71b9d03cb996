"""Logging: one line per event on stderr."""

import logging.config

QUIET = ("httpx", "huggingface_hub", "sentence_transformers", "transformers", "urllib3", "filelock")


def configure_logging(level: str) -> None:
    """Log everything of ours from `level` on, of libraries only what is wrong."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"format": "%(asctime)s %(levelname)-7s %(name)s: %(message)s"}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "root": {"level": "WARNING", "handlers": ["stderr"]},
            "loggers": {
                "app": {"level": level.upper()},
                "uvicorn": {"level": "WARNING"},
                **{name: {"level": "ERROR"} for name in QUIET},
            },
        }
    )

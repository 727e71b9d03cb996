"""`python -m app`: read the settings, serve, exit. `python -m app --check` stops after the settings."""

import logging
import os
import sys
from typing import NoReturn

from app.config import Settings, load_settings, unknown_variables
from app.engines.models.source import check_folder, locate_model
from app.errors import StartupError
from app.telemetry.logs import configure_logging

log = logging.getLogger("app")


def main(arguments: list[str]) -> int:
    """Exit status: 0 after a drain, 1 when the service could not start, 2 for arguments that it does not have."""
    if arguments not in ([], ["--check"]):
        print(
            f"python -m app has --check alone, not {' '.join(arguments)!r}: the commands are those of reranker",
            file=sys.stderr,
        )
        return 2
    try:
        settings = load_settings()
    except StartupError as error:
        print(error, file=sys.stderr)
        return 1
    configure_logging(settings.log_level, settings.log_format)
    for name in unknown_variables():
        log.warning("%s is not a setting of this service and has no effect", name)
    if arguments:
        return _check(settings)
    from app.api.server import serve
    from app.main import create_app

    return serve(
        create_app(settings), settings.host, settings.port, settings.shutdown_timeout, settings.max_connections
    )


def _check(settings: Settings) -> int:
    """What can be found out without loading a model or asking a hub, a device or another service."""
    try:
        locate_model(settings.model, settings.revision)
        if settings.prefilter_model:
            check_folder("RERANKER_PREFILTER_MODEL", settings.prefilter_model)
    except StartupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def run(arguments: list[str]) -> NoReturn:
    """Do it and end the process."""
    status = main(arguments)
    logging.shutdown()
    # Not sys.exit: it would wait for a model that is still loading or an inference that hangs.
    os._exit(status)


if __name__ == "__main__":
    run(sys.argv[1:])

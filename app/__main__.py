"""`python -m app`: read the settings and serve. `python -m app --check` only validates the settings."""

import logging
import os
import sys
from typing import NoReturn

from app.config import Settings
from app.engines.models.source import check_folder, locate_model, of_model
from app.environment import load_settings, service_variables, unknown_variables
from app.errors import StartupError
from app.telemetry.logs import configure_logging

log = logging.getLogger("app")


def main(arguments: list[str]) -> int:
    """Exit status: 0 after a clean shutdown, 1 if the service could not start, 2 for unknown arguments."""
    if arguments not in ([], ["--check"]):
        print(
            f"python -m app accepts only --check, not {' '.join(arguments)!r}. For other commands: reranker --help",
            file=sys.stderr,
        )
        return 2
    try:
        settings = load_settings()
    except StartupError as error:
        print(error, file=sys.stderr)
        return 1
    configure_logging(settings.log_level, settings.log_format)
    if names := service_variables():
        log.warning("Kubernetes has set %s for a Service: ignored", ", ".join(names))
    for name in unknown_variables():
        log.warning("%s is not a setting of this service and is ignored", name)
    if arguments:
        return _check(settings)
    from app.api.server import serve
    from app.main import create_app

    return serve(
        create_app(settings),
        settings.host,
        settings.port,
        settings.shutdown_timeout,
        settings.max_connections,
        settings.keep_alive,
        settings.shutdown_delay,
    )


def _check(settings: Settings) -> int:
    """Check what needs neither a model, the Hub, a device nor another service."""
    try:
        for name, own in settings.each().items():
            with of_model(name):
                locate_model(own.model, own.revision)
        if settings.prefilter_model:
            check_folder("RERANKER_PREFILTER_MODEL", settings.prefilter_model)
    except StartupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def run(arguments: list[str]) -> NoReturn:
    """Run `main` and exit."""
    status = main(arguments)
    logging.shutdown()
    # sys.exit would wait for the threads of a model that is loading or an inference that hangs.
    os._exit(status)


if __name__ == "__main__":
    run(sys.argv[1:])

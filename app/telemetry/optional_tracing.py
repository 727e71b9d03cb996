"""Tracing, if it is wanted and its libraries are installed."""

import logging
from typing import TYPE_CHECKING

from app.errors import StartupError

if TYPE_CHECKING:
    from app.telemetry.tracing import Tracing

log = logging.getLogger(__name__)


def open_tracing(exporter: str | None) -> "Tracing | None":
    """Tracing with this exporter. A failure is logged and the service runs without."""
    if exporter is None:
        return None
    try:
        from app.telemetry.tracing import Tracing

        return Tracing(exporter)
    except ImportError as error:
        log.warning("Tracing is disabled: %s. Install the extra: pip install '.[otel]'", error)
    except StartupError as error:
        log.warning("Tracing is disabled: %s", error)
    return None

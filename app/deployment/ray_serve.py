"""Ray Serve: replicas of the service that Ray starts, watches, scales and stops. `deploy/ray/serve.yaml` runs it.

Needs the extra `ray`. Ray reads the requests and passes them on; the application is that of `python -m app`.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve

from app.api.service import service_of
from app.config import Settings
from app.environment import load_settings
from app.errors import Unavailable
from app.main import create_app
from app.serving.lifecycle import Phase
from app.serving.model import RETRY_AFTER
from app.telemetry.logs import configure_logging

# Requests that Ray sends to a replica with a full queue. The replica rejects them itself, so the answer is its own. Ray
# also counts requests as waiting while it chooses a replica, so its queue needs room for a burst.
SPARE_REQUESTS = 64
# After the last answer the application is shut down.
SHUTDOWN_SECONDS = 10.0
LOOK_SECONDS = 0.05


class Replica:
    """One process with one engine. Ray adds the application to it as `app`."""

    app: Any

    async def check_health(self) -> None:
        """Raise `Unavailable` unless the service is ready. Ray replaces a replica that fails three checks in a row.

        The first check waits for the model: Ray sends no request before.
        """
        service = service_of(self.app)
        while service.lifecycle.phase is Phase.LOADING:  # noqa: ASYNC110 (the lifecycle has no event to wait for)
            await asyncio.sleep(LOOK_SECONDS)
        if service.problem:
            raise Unavailable(service.problem)


def build(_: Mapping[str, Any]) -> Any:
    """The application of Ray Serve, for `import_path`. The deployment options of its YAML file replace these."""
    settings = load_settings()
    # Too large a limit for Ray is harmless, because the replica's own decides: a GPU has the larger default.
    capacity = settings.capacity("cuda" if settings.device == "auto" else settings.device)
    limit = capacity.max_parallel + capacity.max_queue + SPARE_REQUESTS
    deployment = serve.deployment(
        name="Reranker",
        max_ongoing_requests=limit,
        max_queued_requests=limit,
        backpressure_config={"status_code": settings.overload_status, "retry_after_s": RETRY_AFTER},
        graceful_shutdown_timeout_s=settings.shutdown_timeout + SHUTDOWN_SECONDS,
    )
    return deployment(serve.ingress(_application)(Replica)).bind()


def _application() -> Any:
    """The application of one replica, built in its process."""
    settings = _settings()
    configure_logging(settings.log_level, settings.log_format)
    return create_app(settings)


def _settings() -> Settings:
    """As many threads as the replica has CPUs: other replicas use the rest of the machine."""
    settings = load_settings()
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
    if cpus and "threads" not in settings.model_fields_set:
        return load_settings(threads=max(1, int(cpus)))
    return settings

"""`python -m app.healthcheck URL`: whether the service is ready, for the health check of a container.

It waits while the model loads, because a first start may export it for longer than any start period. A service that
does not answer, or is not ready for another reason, fails the check at once.
"""

import json
import sys
import time
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

TIMEOUT, INTERVAL = 4, 1
# The service is on this machine, so a proxy in the environment is not asked.
direct = build_opener(ProxyHandler({}))


def ask(url: str) -> dict[str, str]:
    """The body of `/health`. Raises `OSError` or `ValueError`."""
    try:
        response = direct.open(f"{url}/health", timeout=TIMEOUT)
    except HTTPError as error:  # 503 while it is not ready
        response = error
    with response:
        return dict(json.load(response))


def main(url: str) -> None:
    """Exits with a message and status 1 if the service is not ready."""
    try:
        while (health := ask(url))["status"] == "loading":
            time.sleep(INTERVAL)
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"Not ready: {error}")
    if health["status"] != "ok":
        sys.exit(f"Not ready: {health.get('reason')}")


if __name__ == "__main__":
    main(sys.argv[1])

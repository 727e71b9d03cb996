"""Paths as clients and proxies build them: extra slashes, and the prefix of a path-based route."""

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.config_types import Network, clean_path, is_path_prefix

# Probes of Kubernetes, and of platforms that are made for NIM, KServe, llama.cpp, Weaviate or SageMaker.
STATUS_PATHS = ("/health", "/v1/health")
LIVE_PATHS = ("/health/live", "/v1/health/live", "/v2/health/live", "/.well-known/live")
READY_PATHS = ("/health/ready", "/v1/health/ready", "/v2/health/ready", "/.well-known/ready", "/ping")
HEALTH_PATHS = frozenset({*STATUS_PATHS, *LIVE_PATHS, *READY_PATHS})

FORWARDED_PREFIX = "x-forwarded-prefix"


class Paths:
    """ASGI middleware: one path for each route, whatever the slashes and the prefix in front.

    Sets `root_path` to the prefix that the client sees, and `path` to that prefix and the path of the route. The proxy
    may have removed the prefix from the path or not.
    """

    def __init__(self, app: ASGIApp, root_path: str = "", trusted: Sequence[Network] = ()) -> None:
        """`root_path`: the configured prefix. `trusted`: the proxies that may send `X-Forwarded-Prefix`."""
        self.app = app
        self._root_path = root_path
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            own = self._root_path or scope.get("root_path", "")
            seen = self._forwarded_prefix(scope) or own
            path = clean_path(scope["path"])
            prefix = seen if _starts_with(path, seen) else own
            scope = {**scope, "root_path": seen, "path": seen + _without(path, prefix)}
        await self.app(scope, receive, send)

    def _forwarded_prefix(self, scope: Scope) -> str:
        """The prefix that a trusted proxy has removed. Several proxies each add theirs, the outermost first."""
        values = Headers(scope=scope).getlist(FORWARDED_PREFIX)
        if not values or not self._trusts(scope.get("client")):
            return ""
        joined = clean_path("/".join(part.strip() for value in values for part in value.split(",")))
        return joined if is_path_prefix(joined) else ""

    def _trusts(self, client: tuple[str, int] | None) -> bool:
        try:
            address = ipaddress.ip_address(client[0] if client else "")
        except ValueError:
            return False
        # On a dual-stack socket, IPv4 clients have IPv6 addresses.
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._trusted)


def route_path(scope: Scope) -> str:
    """The path of the route, without the prefix."""
    return _without(scope["path"], scope.get("root_path", ""))


def _starts_with(path: str, prefix: str) -> bool:
    return bool(prefix) and f"{path}/".startswith(f"{prefix}/")


def _without(path: str, prefix: str) -> str:
    return path[len(prefix) :] or "/" if _starts_with(path, prefix) else path

"""Who may come in: the API keys."""

import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import Scope

from app.errors import Unauthorized

# The documentation has no secrets, and a browser cannot send a key for it.
PAGES = {"/docs", "/redoc"}
OPEN_PATHS = {"/", "/health", "/health/live", "/health/ready", "/openapi.json"} | PAGES
ANYONE = "anyone"
OPEN_FOLDER = "/static-offline-docs/"


class ApiKeys:
    """Owns the known keys, as digests. Without any, everybody may come in."""

    def __init__(self, keys: Iterable[str], protect_metrics: bool = False) -> None:
        self._digests = [_digest(key.encode()) for key in keys]
        self._open_paths = OPEN_PATHS if protect_metrics else OPEN_PATHS | {"/metrics"}

    def check(self, scope: Scope) -> str:
        """Who calls: a name for the key, the same each time; `ANYONE` where none is needed.

        Raises `Unauthorized` unless the path is open or a known key was sent.

        A key comes as `Authorization: Bearer KEY`, as the bare value of that header (the TEI client of LlamaIndex
        sends that), or as `X-API-Key`.
        """
        path = scope["path"]
        if not self._digests or path in self._open_paths or path.startswith(OPEN_FOLDER):
            return ANYONE
        headers = Headers(scope=scope)
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        bearer = credentials.strip() if scheme.lower() == "bearer" else headers.get("authorization", "")
        # Headers are bytes; what decoded them took them for Latin-1.
        sent = [_digest(value.encode("latin-1")) for value in (bearer, headers.get("x-api-key", "")) if value]
        # Digests of all keys are compared, so the time does not depend on the key.
        matching = [known for known in self._digests for value in sent if hmac.compare_digest(known, value)]
        if not matching:
            raise Unauthorized("The API key is wrong" if sent else "An API key is needed: 'Authorization: Bearer KEY'")
        return matching[0].hex()


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key).digest()

"""Authentication by API key."""

import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import Scope

from app.api.paths import HEALTH_PATHS, route_path
from app.errors import Unauthorized

# The documentation is public, and a browser cannot send a key for it.
PAGES = {"/docs", "/redoc"}
OPEN_PATHS = {"/", "/openapi.json"} | PAGES | HEALTH_PATHS
KEY_HEADERS = ("x-api-key", "api-key", "x-goog-api-key")
# A request that is signed for AWS. The signature is not checked, and it is not a key.
SIGNED = "aws4-"
ANYONE = "anyone"
# Enough to distinguish keys, and too little to find a random key.
NAME_CHARS = 8
OPEN_FOLDER = "/static-offline-docs/"
UI_FOLDER = "/ui/"


class ApiKeys:
    """Owns the digests of the known keys. Without keys, authentication is off."""

    def __init__(self, keys: Iterable[str], protect_metrics: bool = False) -> None:
        self._digests = [_digest(key.encode()) for key in keys]
        self._open_paths = OPEN_PATHS if protect_metrics else OPEN_PATHS | {"/metrics"}

    def check(self, scope: Scope) -> str:
        """A stable name of the caller's key; `ANYONE` if the path needs no key. Raises `Unauthorized`.

        A key is sent as `Authorization: Bearer KEY`, as the bare value of that header (the TEI client of LlamaIndex
        sends that), as `X-API-Key`, as `Api-Key` (clients of Azure and Pinecone), or as `X-Goog-Api-Key`.
        """
        path = route_path(scope)
        if not self._digests or path in self._open_paths or path.startswith((OPEN_FOLDER, UI_FOLDER)):
            return ANYONE
        headers = Headers(scope=scope)
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        bearer = credentials.strip() if scheme.lower() == "bearer" else headers.get("authorization", "")
        if scheme.lower().startswith(SIGNED):
            bearer = ""
        # Starlette decoded the bytes of the headers as Latin-1.
        sent = [_digest(value.encode("latin-1")) for value in (bearer, *map(headers.get, KEY_HEADERS)) if value]
        # Digests of all keys are compared, so the time does not depend on the key.
        matching = [known for known in self._digests for value in sent if hmac.compare_digest(known, value)]
        if not matching:
            raise Unauthorized("The API key is wrong" if sent else "An API key is needed: 'Authorization: Bearer KEY'")
        return matching[0].hex()


def key_name(caller: str) -> str:
    """The name of a caller in metrics: the beginning of its key's digest, or `ANYONE`."""
    return caller[:NAME_CHARS]


def caller_of(scope: Scope) -> str:
    """The name of the caller that `check` returned for this request."""
    return str(scope["state"]["caller"])


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key).digest()

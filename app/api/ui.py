"""The page: a playground and a dashboard, as static files from `app/ui`, which scripts/ui builds."""

import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response

router = APIRouter(include_in_schema=False)

MIN_DIGEST = 8
FOLDER = Path(__file__).parent.parent / "ui"
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".txt": "text/plain"}
# The page's links are relative. At `/reranker`, without a slash at the end, they need the prefix.
BASE, DOCS = b'<base href="./">', b'data-docs="on"'


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """The page itself. It needs no key; its requests do."""
    content = _content("index.html")
    if prefix := request.scope["root_path"]:
        content = content.replace(BASE, f'<base href="{prefix}/">'.encode())
    if not request.app.openapi_url:
        content = content.replace(DOCS, b'data-docs="off"')
    return _answer(request, content, "text/html", "no-cache")


@router.api_route("/ui/{name:path}", methods=["GET", "HEAD"])
async def asset(name: str, request: Request, v: str = "") -> Response:
    """A script, style or image. `v` is the beginning of its digest, so its content never changes."""
    media_type = MEDIA_TYPES.get(Path(name).suffix)
    if media_type is None or name not in _names():
        raise HTTPException(404)
    content = _content(name)
    # During an update, an older replica may be asked for the file of a newer page.
    is_current = len(v) >= MIN_DIGEST and _digest(content).startswith(v)
    caching = "public, max-age=31536000, immutable" if is_current else "no-cache"
    return _answer(request, content, media_type, caching)


def _answer(request: Request, content: bytes, media_type: str, caching: str) -> Response:
    tag = f'"{_digest(content)[:32]}"'
    headers = {"etag": tag, "cache-control": caching}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=media_type)


@cache
def _names() -> frozenset[str]:
    """The files in the folder. Other paths are never opened."""
    return frozenset(str(path.relative_to(FOLDER).as_posix()) for path in FOLDER.rglob("*") if path.is_file())


@cache
def _content(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

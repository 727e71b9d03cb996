"""Security headers: a browser must not treat an answer as a page, run scripts in it, or embed it."""

from app.api.keys import OPEN_FOLDER, PAGES, UI_FOLDER

SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
ANSWER_HEADERS = (
    *SECURITY_HEADERS,
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
# FastAPI's documentation pages load scripts and styles from OPEN_FOLDER, and contain inline ones.
PAGE_HEADERS = (
    *SECURITY_HEADERS,
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src blob:; "
        b"base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
)
# The page calls its own service, and a second one whichever URL the user enters.
UI_HEADERS = (
    *SECURITY_HEADERS,
    (
        b"content-security-policy",
        b"default-src 'self'; connect-src 'self' http: https:; object-src 'none'; base-uri 'self'; "
        b"form-action 'none'; frame-ancestors 'none'",
    ),
)


def security_headers(path: str, has_ui: bool) -> tuple[tuple[bytes, bytes], ...]:
    """The security headers of an answer, of a documentation page, or of the playground."""
    if has_ui and (path == "/" or path.startswith(UI_FOLDER)):
        return UI_HEADERS
    return PAGE_HEADERS if path in PAGES or path.startswith(OPEN_FOLDER) else ANSWER_HEADERS

"""Types of settings: which values of an environment variable are valid."""

import ipaddress
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, SecretStr

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
PATH_PREFIX = re.compile(r"(/(?!\.+(/|$))[\w.~-]+)+", re.ASCII)
MAX_PREFIX_CHARS = 200


def split(values: str) -> list[str]:
    """Comma-separated values; empty ones are dropped."""
    return [value.strip() for value in values.split(",") if value.strip()]


def _known_device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise ValueError("must be auto, cpu, cuda, cuda:N or mps")
    return value


def _redis_url(value: SecretStr | None) -> SecretStr | None:
    if value and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must start with redis://, rediss:// or unix://")
    return value


def _web_origins(value: str) -> str:
    """Reject what browsers never send as an origin: a value without a scheme, or with a path."""
    for origin in split(value):
        if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+", origin):
            raise ValueError(f"{origin!r} is not an origin such as https://app.example.com")
    return value


def clean_path(path: str) -> str:
    """The path with single slashes and none at the end."""
    return "/" + "/".join(part for part in path.split("/") if part)


def is_path_prefix(path: str) -> bool:
    """Whether a clean path can be a prefix. It goes into the links of the documentation."""
    return len(path) <= MAX_PREFIX_CHARS and bool(PATH_PREFIX.fullmatch(path))


def _root_path(value: str) -> str:
    path = clean_path(value)
    if path != "/" and not is_path_prefix(path):
        raise ValueError("must be a path such as /reranker, of letters, digits and -._~")
    return path.rstrip("/")


def networks(values: str) -> list[Network]:
    """The comma-separated addresses and networks; `*` is all of them. Raises `ValueError`."""
    names = [name for value in split(values) for name in (("0.0.0.0/0", "::/0") if value == "*" else (value,))]
    return [ipaddress.ip_network(name.strip("[]"), strict=False) for name in names]


def _proxies(value: str) -> str:
    networks(value)
    return value


def _as_status(value: Any) -> Any:
    """The environment holds strings, and pydantic does not convert a string to an integer `Literal`."""
    return int(value) if value in ("429", "503") else value


def _lower_case(value: Any) -> Any:
    """Accept Python's upper-case names of log levels."""
    return value.lower() if isinstance(value, str) else value


def _address(value: str) -> str:
    """Accept an IPv6 address as in a URL, and in every spelling: `::0` is `::`."""
    value = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        return value  # a name


Device = Annotated[str, AfterValidator(_known_device)]
Host = Annotated[str, AfterValidator(_address)]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower_case)]
OverloadStatus = Annotated[Literal[429, 503], BeforeValidator(_as_status)]
RedisUrl = Annotated[SecretStr | None, AfterValidator(_redis_url)]
Networks = Annotated[str, AfterValidator(_proxies)]
RootPath = Annotated[str, AfterValidator(_root_path)]
WebOrigins = Annotated[str, AfterValidator(_web_origins)]

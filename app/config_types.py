"""Types of settings: which values of an environment variable are valid."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, SecretStr

from app.errors import StartupError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
PATH_PREFIX = re.compile(r"(/(?!\.+(/|$))[\w.~-]+)+", re.ASCII)
MAX_PREFIX_CHARS = 200
# Goes into URLs and into the labels of metrics.
MODEL_NAME = re.compile(r"(?=.{1,100}$)\w[\w.:-]*(/\w[\w.:-]*)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many requests are processed at once, and how many may wait."""

    max_parallel: int
    max_queue: int


REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
IN_MEMORY = "memory"
PRECISIONS = {"torch": ("fp32", "bf16", "fp16"), "openvino": ("int8", "bf16", "fp32"), "onnx": ("int8", "fp32")}
# Where the settings are unset. On a CPU, more parallel requests than fill the batches gain nothing; a GPU needs many
# requests to fill large batches.
DEVICE_DEFAULTS = {
    "cpu": Capacity(max_parallel=4, max_queue=50),
    "cuda": Capacity(max_parallel=8, max_queue=100),
    "mps": Capacity(max_parallel=4, max_queue=50),
}


def split(values: str) -> list[str]:
    """Comma-separated values; empty ones are dropped."""
    return [value.strip() for value in values.split(",") if value.strip()]


def named_sources(values: str) -> dict[str, str]:
    """The comma-separated `NAME=SOURCE`, by name. Raises `ValueError`."""
    named: dict[str, str] = {}
    for value in split(values):
        name, _, source = (part.strip() for part in value.partition("="))
        if not MODEL_NAME.fullmatch(name) or not source:
            raise ValueError(f"{value!r} is not NAME=SOURCE, with a name of letters, digits and . _ : / -")
        if name.lower() in map(str.lower, named):
            raise ValueError(f"the name {name!r} appears twice")
        named[name] = source
    if not named:
        raise ValueError("must be NAME=SOURCE, NAME=SOURCE")
    return named


def _models(value: str) -> str:
    named_sources(value)
    return value


def names_of_two(values: str) -> tuple[str, str]:
    """The comma-separated names of two models. Raises `ValueError`."""
    names = split(values)
    if len(names) != 2 or names[0].lower() == names[1].lower():  # noqa: PLR2004
        raise ValueError("must be the names of two models of RERANKER_MODELS: SMALL,LARGE")
    return names[0], names[1]


def _cascade(value: str) -> str:
    names_of_two(value)
    return value


def with_revision(source: str) -> tuple[str, str | None]:
    """The source, and the revision after an `@`. A folder may have an `@` in its name."""
    if "@" not in source or Path(source).expanduser().exists():
        return source, None
    location, _, revision = source.rpartition("@")
    return location, revision


def _known_device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise ValueError("must be auto, cpu, cuda, cuda:N or mps")
    return value


def _redis_url(value: SecretStr | None) -> SecretStr | None:
    if value and not value.get_secret_value().startswith(REDIS_SCHEMES):
        raise ValueError("must start with redis://, rediss:// or unix://")
    return value


def _document_place(value: SecretStr | None) -> SecretStr | None:
    place = value.get_secret_value() if value else IN_MEMORY
    is_file = "/" in place and ":" not in place.split("/")[0]
    if place != IN_MEMORY and not is_file and not place.startswith(REDIS_SCHEMES):
        raise ValueError("must be memory, a path with a slash such as ./documents.sqlite, or a redis:// URL")
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


def expanded(name: str, folder: Path) -> Path:
    """The folder with `~` replaced. Raises `StartupError` if the user has no home folder."""
    try:
        return folder.expanduser()
    except RuntimeError:
        raise StartupError(
            f"{name}={str(folder)!r}: this user has no home folder. Set HOME, or set {name} to a folder"
        ) from None


def check_precision(backend: str, precision: str) -> None:
    """Raises `StartupError` if the backend does not support the precision."""
    if backend != "auto" and precision not in ("auto", *PRECISIONS[backend]):
        raise StartupError(
            f"RERANKER_PRECISION={precision} is not valid with RERANKER_BACKEND={backend}: "
            f"use auto, {', '.join(PRECISIONS[backend][:-1])} or {PRECISIONS[backend][-1]}"
        )


Device = Annotated[str, AfterValidator(_known_device)]
Host = Annotated[str, AfterValidator(_address)]
Cascade = Annotated[str, AfterValidator(_cascade)]
Models = Annotated[str, AfterValidator(_models)]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower_case)]
OverloadStatus = Annotated[Literal[429, 503], BeforeValidator(_as_status)]
DocumentPlace = Annotated[SecretStr | None, AfterValidator(_document_place)]
RedisUrl = Annotated[SecretStr | None, AfterValidator(_redis_url)]
Networks = Annotated[str, AfterValidator(_proxies)]
RootPath = Annotated[str, AfterValidator(_root_path)]
WebOrigins = Annotated[str, AfterValidator(_web_origins)]

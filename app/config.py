"""Settings: the only reader of the environment. Everything below `main` takes plain values.

Every field is one environment variable; the README's configuration table is held equal to this file by a test.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.errors import StartupError
from app.machine.hardware import cpu_limit

PREFIX = "RERANKER_"
# Read by the scripts and by clients, not by the service.
SCRIPT_VARIABLES = {"RERANKER_INSTALL", "RERANKER_URL", "RERANKER_API_KEY"}


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much is taken on at a time: requests in work, requests waiting."""

    max_parallel: int
    max_queue: int


# What each engine computes in.
PRECISIONS = {"torch": ("fp32", "bf16", "fp16"), "openvino": ("int8", "bf16", "fp32"), "onnx": ("int8", "fp32")}
# Where a setting is left unset, the device decides. A CPU gains nothing from more parallel requests than keep its
# batches full; a GPU wants many requests to fill large batches from.
DEVICE_DEFAULTS = {
    "cpu": Capacity(max_parallel=4, max_queue=50),
    "cuda": Capacity(max_parallel=8, max_queue=100),
    "mps": Capacity(max_parallel=4, max_queue=50),
}


def _known_device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise ValueError("must be auto, cpu, cuda, cuda:N or mps")
    return value


def _redis_url(value: SecretStr | None) -> SecretStr | None:
    if value and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("it must be redis://, rediss:// or unix://")
    return value


def _web_origins(value: str) -> str:
    """An origin without its scheme, or with a path, is one that no browser has."""
    for origin in _split(value):
        if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+", origin):
            raise ValueError(f"{origin!r} is no origin, like https://app.example.com")
    return value


def _as_status(value: Any) -> Any:
    """The environment has texts; pydantic would not take one for a number of a `Literal`."""
    return int(value) if value in ("429", "503") else value


def _lower_case(value: Any) -> Any:
    """Python's own names of the levels are upper case."""
    return value.lower() if isinstance(value, str) else value


class Settings(BaseSettings):
    """One process's settings, validated and frozen. A field that is None is decided by the device or the model."""

    model_config = SettingsConfigDict(frozen=True, populate_by_name=True, env_ignore_empty=True, extra="ignore")

    host: str = Field("127.0.0.1", alias="RERANKER_HOST")
    port: int = Field(8000, alias="RERANKER_PORT", ge=1, le=65535)
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower_case)] = Field(
        "info", alias="RERANKER_LOG_LEVEL"
    )
    log_format: Literal["console", "json"] = Field("console", alias="RERANKER_LOG_FORMAT")
    log_texts: bool = Field(False, alias="RERANKER_LOG_TEXTS")
    docs: bool = Field(True, alias="RERANKER_DOCS")

    api_keys: SecretStr | None = Field(None, alias="RERANKER_API_KEYS")
    api_keys_file: Path | None = Field(None, alias="RERANKER_API_KEYS_FILE")
    key_max_parallel: int | None = Field(None, alias="RERANKER_KEY_MAX_PARALLEL", ge=1)
    key_per_minute: int | None = Field(None, alias="RERANKER_KEY_REQUESTS_PER_MINUTE", ge=1)
    key_burst: int = Field(10, alias="RERANKER_KEY_BURST", ge=1)
    protect_metrics: bool = Field(False, alias="RERANKER_PROTECT_METRICS")
    cors_origins: Annotated[str, AfterValidator(_web_origins)] | None = Field(None, alias="RERANKER_CORS_ORIGINS")

    model: str | None = Field(None, alias="RERANKER_MODEL")
    revision: str | None = Field(None, alias="RERANKER_REVISION")
    trust_remote_code: bool = Field(False, alias="RERANKER_TRUST_REMOTE_CODE")
    allow_pickle: bool = Field(False, alias="RERANKER_ALLOW_PICKLE")
    max_length: int | None = Field(None, alias="RERANKER_MAX_LENGTH", ge=16, le=131072)
    long_documents: Literal["auto", "truncate", "chunk_max", "refuse"] = Field("auto", alias="RERANKER_LONG_DOCUMENTS")

    backend: Literal["auto", "torch", "openvino", "onnx"] = Field("auto", alias="RERANKER_BACKEND")
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field("auto", alias="RERANKER_PRECISION")
    export_dir: Path = Field(Path("~/.cache/reranker"), alias="RERANKER_EXPORT_DIR")
    device: Annotated[str, AfterValidator(_known_device)] = Field("auto", alias="RERANKER_DEVICE")
    threads: int = Field(default_factory=cpu_limit, alias="RERANKER_THREADS", ge=1, le=1024)
    torch_compile: bool = Field(False, alias="ENABLE_TORCH_COMPILE")
    tokenizer_workers: int = Field(2, alias="TOKENIZER_WORKERS", ge=1, le=256)
    batch_tokens: int | None = Field(None, alias="RERANKER_BATCH_TOKENS", ge=16)
    streams: int | None = Field(None, alias="RERANKER_STREAMS", ge=1, le=1024)
    part_tokens: int | None = Field(None, alias="RERANKER_PART_TOKENS", ge=16)

    max_parallel: int | None = Field(None, alias="RERANKER_MAX_PARALLEL", ge=1)
    max_queue: int | None = Field(None, alias="RERANKER_MAX_QUEUE", ge=0)
    queue_timeout: float = Field(30.0, alias="RERANKER_QUEUE_TIMEOUT", gt=0, allow_inf_nan=False)
    priorities: bool = Field(False, alias="RERANKER_PRIORITIES")
    overload_status: Annotated[Literal[429, 503], BeforeValidator(_as_status)] = Field(
        429, alias="RERANKER_OVERLOAD_STATUS"
    )
    on_overload: Literal["error", "lexical"] = Field("error", alias="RERANKER_ON_OVERLOAD")
    inference_timeout: float = Field(120.0, alias="RERANKER_INFERENCE_TIMEOUT", gt=0, allow_inf_nan=False)
    max_reloads: int = Field(3, alias="RERANKER_MAX_RELOADS", ge=0)
    request_timeout: float = Field(0.0, alias="RERANKER_REQUEST_TIMEOUT", ge=0, allow_inf_nan=False)
    shutdown_timeout: float = Field(30.0, alias="RERANKER_SHUTDOWN_TIMEOUT", ge=0, allow_inf_nan=False)

    prefilter: Literal["off", "lexical", "embedding", "hybrid"] = Field("off", alias="RERANKER_PREFILTER")
    prefilter_top_k: int = Field(100, alias="RERANKER_PREFILTER_TOP_K", ge=1)
    prefilter_model: str | None = Field(None, alias="RERANKER_PREFILTER_MODEL")

    max_documents: int = Field(1000, alias="RERANKER_MAX_DOCUMENTS", ge=1, le=10_000)
    max_text_chars: int = Field(100_000, alias="RERANKER_MAX_TEXT_CHARS", ge=1, le=100_000_000)
    max_body_bytes: int = Field(8_388_608, alias="RERANKER_MAX_BODY_BYTES", ge=1024)
    max_buffered_bytes: int = Field(536_870_912, alias="RERANKER_MAX_BUFFERED_BYTES", ge=1024)
    body_timeout: float = Field(60.0, alias="RERANKER_BODY_TIMEOUT", gt=0, allow_inf_nan=False)
    max_connections: int = Field(1024, alias="RERANKER_MAX_CONNECTIONS", ge=1)

    prediction_cache: bool = Field(True, alias="ENABLE_PREDICTION_CACHE")
    cache_ttl: float = Field(300.0, alias="CACHE_TTL_SECONDS", gt=0, allow_inf_nan=False)
    cache_max_entries: int = Field(100_000, alias="CACHE_MAX_ENTRIES", ge=1)
    cache_url: Annotated[SecretStr | None, AfterValidator(_redis_url)] = Field(None, alias="RERANKER_CACHE_URL")
    clear_cache_interval: float = Field(3600.0, alias="CLEAR_CACHE_INTERVAL", gt=0, allow_inf_nan=False)

    def capacity(self, device: str) -> Capacity:
        """The capacity asked for, and where none was, the device's own; `device` is the real one, like `cuda:0`."""
        asked = {name: getattr(self, name) for name in Capacity.__slots__ if getattr(self, name) is not None}
        return replace(DEVICE_DEFAULTS[device.split(":", maxsplit=1)[0]], **asked)

    def keys(self) -> list[str]:
        """All API keys, from the variable and from the file. Raises `StartupError` where one of them gives none."""
        keys: list[str] = []
        if self.api_keys:
            keys += _split(self.api_keys.get_secret_value()) or _no_key("RERANKER_API_KEYS")
        if self.api_keys_file:
            name = f"RERANKER_API_KEYS_FILE={self.api_keys_file}"
            try:
                lines = [line.strip() for line in self.api_keys_file.read_text("utf-8-sig").splitlines()]
            except (OSError, UnicodeDecodeError) as error:
                raise StartupError(f"{name} cannot be read: {error}") from None
            if any(re.search(r"\S\s+#", line) for line in lines):
                raise StartupError(f"{name} has a comment behind a key: it needs a line of its own")
            keys += [line for line in lines if line and not line.startswith("#")] or _no_key(name)
        return keys

    def origins(self) -> list[str]:
        """The web origins that browsers may call from."""
        return _split(self.cors_origins or "")

    def schedule(self, splits: bool) -> dict[str, int]:
        """What is asked for of an engine's schedule, by field; only one that splits batches has streams and parts."""
        names = ("batch_tokens", "streams", "part_tokens") if splits else ("batch_tokens",)
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def _split(values: str) -> list[str]:
    """Values with commas between them."""
    return [value.strip() for value in values.split(",") if value.strip()]


def _check_engine(settings: Settings) -> None:
    """Raises `StartupError` for a precision that the backend does not have."""
    name, precision = settings.backend, settings.precision
    if name != "auto" and precision not in ("auto", *PRECISIONS[name]):
        raise StartupError(
            f"RERANKER_PRECISION={precision} is not valid with RERANKER_BACKEND={name}: "
            f"that has {', '.join(PRECISIONS[name])}"
        )


def _no_key(name: str) -> NoReturn:
    """A key was meant to be there: without one the service would be open to all."""
    raise StartupError(f"{name} has no key in it")


def environment_names() -> list[str]:
    """The environment variable of every setting, in the order of the table."""
    return [str(field.alias) for field in Settings.model_fields.values()]


def load_settings(**chosen: Any) -> Settings:
    """Read and validate the environment; what is `chosen`, by field, goes before it.

    Raises `StartupError` with one line per wrong value.
    """
    try:
        settings = Settings(**chosen)
    except ValidationError as error:
        raise StartupError("\n".join(_explain(error.errors()))) from None
    settings.keys()
    _check_engine(settings)
    return settings


def unknown_variables(names: Iterable[str] = os.environ) -> list[str]:
    """Variables that look like ours and are not: most likely a typing error, worth a warning at start."""
    known = SCRIPT_VARIABLES.union(environment_names())
    return sorted(name for name in names if name.startswith(PREFIX) and name not in known)


def traces_exporter() -> str | None:
    """Which exporter of traces the standard variables of OpenTelemetry ask for; None for no traces."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    asked = any(os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT") for signal in ("", "TRACES_"))
    exporter = os.environ.get("OTEL_TRACES_EXPORTER") or ("otlp" if asked else "none")
    return None if exporter == "none" else exporter


def _explain(errors: Iterable[Any]) -> Iterable[str]:
    """One line per wrong value. A secret is not shown, whatever is wrong with it."""
    secrets = {field.alias for field in Settings.model_fields.values() if field.annotation == SecretStr | None}
    for error in errors:
        name, allowed = error["loc"][0], error["msg"].removeprefix("Value error, ")
        value = "" if name in secrets else f"={error['input']!r}"
        yield f"{name}{value} is not valid: {allowed[0].lower()}{allowed[1:]}"

"""The environment: the only module that reads it, into `Settings`."""

import os
from collections.abc import Collection, Iterable
from typing import Any

from pydantic import SecretStr, ValidationError

from app.config import Settings
from app.config_names import PREFIX, RAY_VARIABLES, SCRIPT_VARIABLES, is_service_variable
from app.config_quality import QualitySettings
from app.config_types import check_precision, named_sources, names_of_two
from app.errors import StartupError

# Settings of one model, and what to do instead if there are several.
ONE_MODEL = {
    "revision": "write ID@REVISION in RERANKER_MODELS",
    "template": "export the model with its template (reranker export --template)",
    "instruction": "send `instruction` in the requests",
}


def environment_names() -> list[str]:
    """The environment variable of every setting, in the order of the fields; those of `QualitySettings` are last."""
    own_first = sorted(Settings.model_fields, key=QualitySettings.model_fields.__contains__)
    return [str(Settings.model_fields[name].alias) for name in own_first]


def load_settings(**overrides: Any) -> Settings:
    """Read the environment; `overrides` take precedence. Raises `StartupError` with one line per invalid value."""
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        raise StartupError("\n".join(explain(error.errors()))) from None
    settings.keys()
    check_precision(settings.backend, settings.precision)
    _check_models(settings)
    return settings


def _check_models(settings: Settings) -> None:
    """Raises `StartupError` if a setting for a single model is combined with several models."""
    if settings.models is None:
        if settings.cascade:
            raise StartupError("RERANKER_CASCADE needs RERANKER_MODELS, with the sources of its two models")
        return
    if settings.model is not None:
        raise StartupError("RERANKER_MODELS and RERANKER_MODEL are both set: unset one of them")
    for name, remedy in ONE_MODEL.items():
        if getattr(settings, name) is not None:
            raise StartupError(
                f"RERANKER_{name.upper()} applies to a single model, and RERANKER_MODELS is set: {remedy}"
            )
    _check_cascade(settings.cascade, [name.lower() for name in named_sources(settings.models)])


def _check_cascade(cascade: str | None, models: Collection[str]) -> None:
    """Raises `StartupError` if the cascade has other models than these, or one of them has its name."""
    if cascade is None:
        return
    if missing := [name for name in names_of_two(cascade) if name.lower() not in models]:
        raise StartupError(f"RERANKER_CASCADE={cascade}: RERANKER_MODELS has no model {missing[0]!r}")
    if "cascade" in models:
        raise StartupError("RERANKER_MODELS has a model 'cascade', which is the name of RERANKER_CASCADE: rename it")


def service_variables(names: Iterable[str] = os.environ) -> list[str]:
    """Variables with our prefix that Kubernetes has set for a Service."""
    return sorted(name for name in names if name.startswith(PREFIX) and is_service_variable(name, os.environ.get(name)))


def unknown_variables(names: Iterable[str] = os.environ) -> list[str]:
    """Variables with our prefix that nothing reads: most likely a typing error."""
    known = {*SCRIPT_VARIABLES, *environment_names(), *service_variables(names)}
    return sorted(name for name in names if name.startswith(PREFIX) and name not in known)


def traces_exporter() -> str | None:
    """The trace exporter that OpenTelemetry's standard variables select; None if tracing is off."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    asked = any(os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT") for signal in ("", "TRACES_"))
    exporter = os.environ.get("OTEL_TRACES_EXPORTER") or ("otlp" if asked else "none")
    return None if exporter == "none" else exporter


def prepare_ray() -> None:
    """Call it before Ray is imported."""
    os.environ.update(RAY_VARIABLES)


def explain(errors: Iterable[Any]) -> Iterable[str]:
    """One line per invalid value. Secrets are never shown."""
    secrets = {field.alias for field in Settings.model_fields.values() if field.annotation == SecretStr | None}
    for error in errors:
        name, allowed = error["loc"][0], error["msg"].removeprefix("Value error, ")
        value = "" if name in secrets else f"={error['input']!r}"
        yield f"{name}{value} is not valid: {allowed[0].lower()}{allowed[1:]}"

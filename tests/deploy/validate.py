"""Validate objects by the schemas of Kubernetes, of the Prometheus operator and of KEDA.

Reads `[[version, object], …]` from standard input. Prints a line for each problem. Runs in the environment of
tests/deploy/kubernetes.py.
"""

import json
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import kubernetes_validate  # type: ignore[import-not-found, unused-ignore]
from cloudcoil.models.keda.v1alpha1 import ScaledObject  # type: ignore[import-not-found, unused-ignore]
from cloudcoil.models.prometheus_operator.v1 import (  # type: ignore[import-not-found, unused-ignore]
    PrometheusRule,
    ServiceMonitor,
)
from jsonschema import Draft202012Validator

CUSTOM = {model.__name__: model for model in (PrometheusRule, ScaledObject, ServiceMonitor)}


def strict(schema: Any) -> Any:
    """The schema, refusing fields that it does not define."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(part) for name, part in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        closed.setdefault("additionalProperties", False)
    return closed


@cache
def validator(kind: str) -> Draft202012Validator:
    return Draft202012Validator(strict(CUSTOM[kind].model_json_schema(by_alias=True)))


def problems(version: str, thing: dict[str, Any]) -> Iterator[str]:
    if thing["kind"] in CUSTOM:
        for error in validator(thing["kind"]).iter_errors(thing):
            yield f"{error.json_path}: {error.message}"
        return
    try:
        kubernetes_validate.validate(thing, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message}"


for version, thing in json.load(sys.stdin):
    for problem in problems(version, thing):
        print(f"{thing['kind']} {thing['metadata']['name']} ({version}): {problem}")

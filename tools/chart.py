"""Generate what repeats the settings in the Helm chart: the settings in values.schema.json."""

import json
from pathlib import Path
from typing import Any

from app.config import Settings

SCHEMA = Path(__file__).parent.parent / "deploy" / "helm" / "reranker" / "values.schema.json"
# Other values of the chart set these.
SET_BY_CHART = {
    "RERANKER_API_KEYS",
    "RERANKER_API_KEYS_FILE",
    "RERANKER_DEVICE",
    "RERANKER_MODEL",
    "RERANKER_REVISION",
    "HF_TOKEN",
}
# Libraries read more variables than the documentation lists.
OTHERS = "^(CUDA|OMP|OTEL|PYTORCH)_[A-Z0-9_]+$"
LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def schema(text: str, libraries: dict[str, str], without: set[str]) -> str:
    """The text of values.schema.json with its settings brought up to date.

    `libraries`: variables that libraries read, with their descriptions. `without`: settings that the image sets.
    """
    values = json.loads(text)
    fields = Settings.model_json_schema(by_alias=True)["properties"]
    descriptions = {name: " ".join(field["description"].split()) for name, field in fields.items()}
    proxies = {name.lower(): meaning for name, meaning in libraries.items() if name.endswith("_PROXY")}
    known = {name: {"description": descriptions[name], **_values(field)} for name, field in fields.items()}
    known |= {
        name: {"description": meaning, "type": ["string", "integer", "boolean"]}
        for name, meaning in (libraries | proxies).items()
    }
    settings = values["properties"]["settings"]
    settings["properties"] = {name: known[name] for name in known if name not in SET_BY_CHART | without}
    settings["patternProperties"] = {OTHERS: {"type": ["string", "integer", "boolean"]}}
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _values(field: dict[str, Any]) -> dict[str, Any]:
    """What a value may be. A number may also be written as a string, as in any environment."""
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    types = {kind["type"] for kind in kinds if "type" in kind}
    if choices := [choice for kind in kinds for choice in kind.get("enum", [])]:
        return {"enum": choices + [str(choice) for choice in choices if not isinstance(choice, str)]}
    limits = {name: kind[name] for kind in kinds for name in LIMITS if name in kind}
    numeric = types & {"integer", "number"}
    pattern = {"pattern": r"^[0-9.]*$"} if numeric else {}
    return {"type": sorted(types | {"string"}), **limits, **pattern}

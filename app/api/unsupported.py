"""Fields that a request has and this dialect does not: refused if they would change the scores, else reported."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from app.errors import InvalidRequest

AT_THE_END = "texts are cut at their end: only 'right' is supported"
USE_INSTRUCTION = "send it as instruction, if the model takes one"
NO_QUERY_LIMIT = "queries have no separate limit: shorten the query before you send it"
USE_RAW_SCORES = "set raw_scores for logits"
# Fields of other services that change the scores, and why they are refused.
REASONS = {
    "truncation_side": AT_THE_END,
    "truncation_direction": AT_THE_END,
    "max_tokens_per_query": NO_QUERY_LIMIT,
    "max_query_length": NO_QUERY_LIMIT,
    "max_length": "set max_tokens_per_doc, or RERANKER_MAX_LENGTH",
    "task_instruction": USE_INSTRUCTION,
    "query_instruction": USE_INSTRUCTION,
    "prompt": USE_INSTRUCTION,
    "prompt_name": USE_INSTRUCTION,
    "use_activation": USE_RAW_SCORES,
    "activation": USE_RAW_SCORES,
    "normalize": USE_RAW_SCORES,
    "softmax": USE_RAW_SCORES,
}
# Values that ask for what happens anyway.
NO_EFFECT: dict[str, tuple[Any, ...]] = {
    "truncation_side": ("right",),
    "truncation_direction": ("right",),
    "max_tokens_per_query": (-1, 0),
    "max_query_length": (-1, 0),
    "max_length": (-1, 0),
    "use_activation": (True, "true"),
    "activation": (True, "true"),
    "normalize": (True, "true"),
    "softmax": (False, "false"),
}
UNKNOWN = "is not supported; it is ignored"
# Options of Pinecone and DashScope are in this field.
NESTED = "parameters"
NAME = re.compile(r"[A-Za-z_][\w.-]{0,39}", re.ASCII)
MAX_REPORTED = 8


def refuse_unsupported(fields: Mapping[str, Any]) -> None:
    """Raise `InvalidRequest` for a field that would change the scores, unless its value has no effect."""
    for name, value in _with_nested(fields):
        field = name.removeprefix(f"{NESTED}.")
        asked = value.lower() if isinstance(value, str) else value
        if field in REASONS and asked not in (None, "", *NO_EFFECT.get(field, ())):
            raise InvalidRequest(f"is not supported: {REASONS[field]}", name)


def warnings(fields: Mapping[str, Any], translated: Collection[str], different: Mapping[str, str]) -> str:
    """The value of the header that names the fields without effect. Empty without such fields.

    `translated`: fields that this dialect uses under another name. `different`: fields that it uses, but not as their
    service does, with what they do here.
    """
    unused = [
        name
        for name, value in _with_nested(fields)
        if value is not None and name not in translated and name.removeprefix(f"{NESTED}.") not in REASONS
    ]
    named = [name for name in unused if NAME.fullmatch(name)][:MAX_REPORTED]
    found = [f"{name}: {different.get(name, UNKNOWN)}" for name in named]
    if others := len(unused) - len(named):
        found.append(f"{others} more: not supported; they are ignored")
    return "; ".join(found)


def _with_nested(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each field with its value. Those in `parameters` have its name in front."""
    for name, value in fields.items():
        if name == NESTED and isinstance(value, dict):
            yield from ((f"{NESTED}.{inner}", item) for inner, item in value.items())
        else:
            yield name, value

"""Fields that a request has and this dialect does not: refused if they would change the scores, else reported."""

import re
from collections.abc import Iterable, Mapping
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
UNKNOWN = "is not supported and ignored"
# Fields that are used, but not as their service does.
DIFFERENT = {"truncate_prompt_tokens": "limits each document, not query and document together"}
# Fields that a dialect translates.
KNOWN = {"truncate", "truncation", "parameters", "property"}
NAME = re.compile(r"[A-Za-z_][\w.-]{0,39}", re.ASCII)
MAX_REPORTED = 8


def refuse_unsupported(fields: Mapping[str, Any]) -> None:
    """Raise `InvalidRequest` for a field that would change the scores, unless its value has no effect."""
    for name, reason in REASONS.items():
        value = fields.get(name)
        value = value.lower() if isinstance(value, str) else value
        if value not in (None, "", *NO_EFFECT.get(name, ())):
            raise InvalidRequest(f"is not supported: {reason}", name)


def warnings(names: Iterable[str]) -> str:
    """The value of the header that names the fields without effect. Empty without such fields."""
    found = [name for name in names if name not in REASONS and name not in KNOWN and NAME.fullmatch(name)]
    return "; ".join(f"{name}: {DIFFERENT.get(name, UNKNOWN)}" for name in found[:MAX_REPORTED])

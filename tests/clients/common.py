"""What the scripts of all client libraries share. Runs in their environments: the standard library only."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

Ranked = list[tuple[int | None, float, str | None]]
"""Index in the request, score, text: None where the client does not pass it on."""
Rank = Callable[[str, Sequence[str]], Ranked]
Make = Callable[[str, int], Rank]
"""A client for the service at a URL, which returns so many results."""
KEY = "test-key"
MODEL = "reranker"


def error_of(rank: Rank, query: str, documents: Sequence[str]) -> str | None:
    """What the client raises, with all that it carries; None when it raises nothing."""
    try:
        rank(query, documents)
    except Exception as error:  # each client has its own
        causes = [error, error.__cause__, error.__context__]
        responses = [getattr(cause, "response", None) for cause in causes]
        texts = [f"{response.status_code} {response.text}" for response in responses if response is not None]
        return " ".join([type(error).__name__, *(str(cause) for cause in causes if cause), *texts])
    return None


def main(clients: dict[str, Make]) -> None:
    """Read the task from stdin, write what came of it to stdout."""
    task: dict[str, Any] = json.load(sys.stdin)
    make, query, documents = clients[task["client"]], task["query"], task["documents"]
    report = {
        "ranked": make(task["url"], len(documents))(query, documents),
        "best": make(task["url"], 1)(query, documents),
        "error": error_of(make(task["url"], 1), "", documents),
        "unauthorized": error_of(make(task["closed_url"], 1), query, documents),
        "overload": error_of(make(task["full_url"], 1), query, documents),
    }
    print("\n" + json.dumps(report))

"""Shared by the scripts of all client libraries. They run it in their environments: standard library only."""

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Ranked = list[tuple[int | None, float, str | None]]
"""Index in the request, score and text; the index or the text is None if the client drops it."""
Rank = Callable[[str, Sequence[str]], Ranked]
Make = Callable[[str, int], Rank]
"""Create a client for the service at a URL that returns `top_n` results."""
KEY = "test-key"
MODEL = "reranker"


def error_of(rank: Rank, query: str, documents: Sequence[str]) -> str | None:
    """The error that the client raises, with its causes and the response; None without an error."""
    try:
        rank(query, documents)
    except Exception as error:  # each client has its own class
        causes = [error, error.__cause__, error.__context__]
        responses = [getattr(cause, "response", None) for cause in causes]
        texts = [f"{response.status_code} {response.text}" for response in responses if hasattr(response, "text")]
        return " ".join([type(error).__name__, *(str(cause) for cause in causes if cause), *texts])
    return None


def main(clients: dict[str, Make]) -> None:
    """Read the task from stdin, and write a report for each client to stdout."""
    task: dict[str, Any] = json.load(sys.stdin)
    query, documents = task["query"], task["documents"]

    def overload(make: Make) -> str | None:
        return error_of(make(task["full_url"], 1), query, documents)

    reports: dict[str, dict[str, Any]] = {}
    # Some clients wait and try again: all wait together.
    with ThreadPoolExecutor(len(clients)) as threads:
        overloads = {name: threads.submit(overload, make) for name, make in clients.items()}
        for name, make in clients.items():
            try:
                reports[name] = report(make, task) | {"overload": overloads[name].result()}
            except Exception:
                reports[name] = {"failed": traceback.format_exc()}
    print("\n" + json.dumps(reports))


def report(make: Make, task: dict[str, Any]) -> dict[str, Any]:
    query, documents = task["query"], task["documents"]
    return {
        "ranked": make(task["url"], len(documents))(query, documents),
        "best": make(task["url"], 1)(query, documents),
        "error": error_of(make(task["url"], 1), "", documents),
        "unauthorized": error_of(make(task["closed_url"], 1), query, documents),
    }

"""The Python client of the reranker service: `Client`, and `AsyncClient` with the same methods.

    from reranker_client import Client

    with Client("http://127.0.0.1:8000") as client:
        for result in client.rerank("what causes tides", ["The moon.", "A market."], top_k=1):
            print(result.index, result.relevance_score)

A call that fails raises `RerankError`.
"""

from reranker_client.client import AsyncClient, Client, RerankError
from reranker_client.models import BadLine, Budget, Document, Info, Meta, Ranking, Result, Span, Stored, Usage, Window

__all__ = [
    "AsyncClient",
    "BadLine",
    "Budget",
    "Client",
    "Document",
    "Info",
    "Meta",
    "Ranking",
    "RerankError",
    "Result",
    "Span",
    "Stored",
    "Usage",
    "Window",
]

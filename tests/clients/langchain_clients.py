"""The rerankers of LangChain, and the Infinity client that one of them uses."""

from collections.abc import Sequence
from typing import Any

import cohere
from common import KEY, MODEL, Rank, Ranked, main
from infinity_client import Client
from infinity_client.api.default import rerank as infinity_rerank
from infinity_client.models import RerankInput
from langchain_cohere import CohereRerank
from langchain_community.document_compressors import InfinityRerank, JinaRerank, jina_rerank
from langchain_core.documents import Document


def _compress(compressor: Any) -> Rank:
    def rank(query: str, documents: Sequence[str]) -> Ranked:
        found = compressor.compress_documents(
            [Document(page_content=text, metadata={"index": index}) for index, text in enumerate(documents)], query
        )
        return [
            (document.metadata["index"], document.metadata["relevance_score"], document.page_content)
            for document in found
        ]

    return rank


def langchain_cohere(url: str, top_n: int) -> Rank:
    return _compress(CohereRerank(client=cohere.ClientV2(KEY, base_url=url), model=MODEL, top_n=top_n))


def _infinity_client(url: str) -> Client:
    return Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, raise_on_unexpected_status=True)


def langchain_infinity(url: str, top_n: int) -> Rank:
    return _compress(InfinityRerank(client=_infinity_client(url), model=MODEL, top_n=top_n))


def langchain_jina(url: str, top_n: int) -> Rank:
    jina_rerank.JINA_API_URL = f"{url}/v1/rerank"
    return _compress(JinaRerank(jina_api_key=KEY, model=MODEL, top_n=top_n))


def infinity(url: str, top_n: int) -> Rank:
    client = _infinity_client(url)

    def rank(query: str, documents: Sequence[str]) -> Ranked:
        body = RerankInput(query=query, documents=list(documents), model=MODEL, top_n=top_n)
        answer = infinity_rerank.sync_detailed(client=client, body=body)
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code} {answer.content!r}")
        return [(result.index, result.relevance_score, None) for result in answer.parsed.results]

    return rank


main(
    {
        "langchain CohereRerank": langchain_cohere,
        "langchain InfinityRerank": langchain_infinity,
        "langchain JinaRerank": langchain_jina,
        "infinity_client": infinity,
    }
)

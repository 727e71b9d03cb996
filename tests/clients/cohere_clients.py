"""The Cohere SDK and LiteLLM."""

import os
from collections.abc import Sequence
from typing import Any

import cohere
from common import KEY, MODEL, Make, Rank, Ranked, main

# Without it, LiteLLM asks the network for prices, several times.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm


def cohere_v1(url: str, top_n: int) -> Rank:
    client = cohere.Client(KEY, base_url=url)

    def rank(query: str, documents: Sequence[str]) -> Ranked:
        answer = client.rerank(model=MODEL, query=query, documents=list(documents), top_n=top_n, return_documents=True)
        return [(result.index, result.relevance_score, result.document.text) for result in answer.results]

    return rank


def cohere_v2(url: str, top_n: int) -> Rank:
    client = cohere.ClientV2(KEY, base_url=url)

    def rank(query: str, documents: Sequence[str]) -> Ranked:
        answer = client.rerank(model=MODEL, query=query, documents=list(documents), top_n=top_n)
        assert answer.meta.billed_units.search_units == 1
        return [(result.index, result.relevance_score, None) for result in answer.results]

    return rank


def cohere_spans(url: str, top_n: int) -> Rank:
    """Passages inside the documents, which are single sentences here."""
    client = cohere.ClientV2(KEY, base_url=url)
    wanted = cohere.RerankRelevantSpans(mode="enabled", threshold=0.0, max_spans=1)

    def rank(query: str, documents: Sequence[str]) -> Ranked:
        answer = client.rerank(model=MODEL, query=query, documents=list(documents), top_n=top_n, relevant_spans=wanted)
        ranked: Ranked = []
        for result in answer.results:
            [span] = result.relevant_spans
            ranked.append((result.index, span.score, documents[result.index][span.start : span.end]))
        return ranked

    return rank


def lite(provider: str, path: str, return_documents: bool = True) -> Make:
    def make(url: str, top_n: int) -> Rank:
        def rank(query: str, documents: Sequence[str]) -> Ranked:
            answer: Any = litellm.rerank(
                model=f"{provider}/{MODEL}",
                query=query,
                documents=list(documents),
                top_n=top_n,
                return_documents=return_documents,
                api_base=url + path,
                api_key=KEY,
                max_retries=0,
            )
            return [
                (result["index"], result["relevance_score"], (result.get("document") or {}).get("text"))
                for result in answer.results
            ]

        return rank

    return make


main(
    {
        "cohere v1": cohere_v1,
        "cohere v2": cohere_v2,
        "cohere v2 relevant_spans": cohere_spans,
        "litellm hosted_vllm": lite("hosted_vllm", ""),
        # It expects returned documents as strings, which the other clients cannot read.
        "litellm infinity": lite("infinity", "", return_documents=False),
        "litellm cohere": lite("cohere", ""),
        "litellm jina_ai": lite("jina_ai", "/v1/rerank"),
    }
)

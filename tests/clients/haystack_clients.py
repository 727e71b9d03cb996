"""The rankers of Haystack."""

from collections.abc import Sequence
from typing import Any

from common import KEY, MODEL, Rank, Ranked, main
from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.cohere import CohereRanker
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker
from haystack_integrations.components.rankers.jina import JinaRanker
from haystack_integrations.components.rankers.nvidia import NvidiaRanker

SECRET = Secret.from_token(KEY)


def _run(ranker: Any) -> Rank:
    def rank(query: str, documents: Sequence[str]) -> Ranked:
        found = ranker.run(
            query=query,
            documents=[Document(content=text, meta={"index": index}) for index, text in enumerate(documents)],
        )["documents"]
        return [(document.meta["index"], document.score, document.content) for document in found]

    return rank


def cohere(url: str, top_n: int) -> Rank:
    return _run(CohereRanker(model=MODEL, api_key=SECRET, top_k=top_n, api_base_url=url))


def jina(url: str, top_n: int) -> Rank:
    return _run(JinaRanker(model=MODEL, api_key=SECRET, top_k=top_n, base_url=f"{url}/v1/rerank"))


def nvidia(url: str, top_n: int) -> Rank:
    ranker = NvidiaRanker(model=MODEL, api_key=SECRET, api_url=f"{url}/v1", top_k=top_n)
    ranker.warm_up()
    return _run(ranker)


def tei(url: str, top_n: int) -> Rank:
    return _run(HuggingFaceTEIRanker(url=url, top_k=top_n, token=SECRET, max_retries=0))


main(
    {
        "haystack CohereRanker": cohere,
        "haystack JinaRanker": jina,
        "haystack NvidiaRanker": nvidia,
        "haystack HuggingFaceTEIRanker": tei,
    }
)

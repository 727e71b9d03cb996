"""The rerankers of LlamaIndex."""

from collections.abc import Sequence
from typing import Any

from common import KEY, MODEL, Rank, Ranked, main
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference


def _postprocess(reranker: Any) -> Rank:
    def rank(query: str, documents: Sequence[str]) -> Ranked:
        nodes = [NodeWithScore(node=TextNode(text=text, id_=str(index))) for index, text in enumerate(documents)]
        found = reranker.postprocess_nodes(nodes, query_str=query)
        return [(int(item.node.node_id), item.score, item.node.text) for item in found]

    return rank


def cohere(url: str, top_n: int) -> Rank:
    return _postprocess(CohereRerank(api_key=KEY, model=MODEL, top_n=top_n, base_url=url))


def jina(url: str, top_n: int) -> Rank:
    return _postprocess(JinaRerank(api_key=KEY, model=MODEL, top_n=top_n, base_url=f"{url}/v1"))


def tei(url: str, top_n: int) -> Rank:
    return _postprocess(TextEmbeddingInference(base_url=url, top_n=top_n, auth_token=KEY))


main({"llama-index CohereRerank": cohere, "llama-index JinaRerank": jina, "llama-index TEI": tei})

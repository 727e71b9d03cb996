"""The clients of hosted services: Voyage, DashScope, Amazon Bedrock, Pinecone, Google and Mixedbread.

Each imports its own library: all of them together take seconds.
"""

import json
from collections.abc import Sequence
from typing import Any

from common import KEY, MODEL, Rank, Ranked, main

ARN = "arn:aws:bedrock:eu-central-1::foundation-model/cohere.rerank-v3-5:0"


def voyage(url: str, top_n: int) -> Rank:
    from voyageai import Client

    client = Client(api_key=KEY, base_url=f"{url}/v1", max_retries=0)

    def rank(query: str, documents: Sequence[str]) -> Ranked:
        answer = client.rerank(query, list(documents), model="rerank-2.5", top_k=top_n)
        assert answer.total_tokens > 0
        return [(result.index, result.relevance_score, result.document) for result in answer.results]

    return rank


def dashscope_v1(url: str, top_n: int) -> Rank:
    import dashscope

    dashscope.base_http_api_url = f"{url}/api/v1"

    def rank(query: str, documents: Sequence[str]) -> Ranked:
        answer = dashscope.TextReRank.call(
            "gte-rerank-v2", query, list(documents), top_n=top_n, return_documents=True, api_key=KEY
        )
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code} {answer.code} {answer.message}")
        assert answer.usage.total_tokens > 0
        assert answer.request_id
        return [(item.index, item.relevance_score, item["document"]["text"]) for item in answer.output.results]

    return rank


def dashscope_v2(url: str, top_n: int) -> Rank:
    from dashscope import Client

    client = Client(api_key=KEY, base_url=f"{url}/api/v1", max_retries=0)

    def rank(query: str, documents: Sequence[str]) -> Ranked:
        answer = client.rerank.create(
            model=MODEL, query=query, documents=list(documents), top_n=top_n, return_documents=True
        )
        assert answer.usage.total_tokens > 0
        return [(item.index, item.relevance_score, item.document.text) for item in answer.results]

    return rank


def _aws(service: str, url: str) -> Any:
    import boto3
    from botocore.config import Config

    client = boto3.client(
        service,
        endpoint_url=url,
        region_name="eu-central-1",
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key=KEY,
        # Without its validation it sends an empty query.
        config=Config(retries={"total_max_attempts": 1}, parameter_validation=False),
    )
    # Its signature is not an API key.
    client.meta.events.register("before-sign", lambda request, **_: request.headers.add_header("X-API-Key", KEY))
    return client


def bedrock_rerank(url: str, top_n: int) -> Rank:
    client = _aws("bedrock-agent-runtime", url)

    def rank(query: str, documents: Sequence[str]) -> Ranked:
        answer = client.rerank(
            queries=[{"type": "TEXT", "textQuery": {"text": query}}],
            sources=[
                {"type": "INLINE", "inlineDocumentSource": {"type": "TEXT", "textDocument": {"text": text}}}
                for text in documents
            ],
            rerankingConfiguration={
                "type": "BEDROCK_RERANKING_MODEL",
                "bedrockRerankingConfiguration": {
                    "numberOfResults": top_n,
                    "modelConfiguration": {"modelArn": ARN},
                },
            },
        )
        return [
            (item["index"], item["relevanceScore"], item["document"]["textDocument"]["text"])
            for item in answer["results"]
        ]

    return rank


def bedrock_invoke(url: str, top_n: int) -> Rank:
    client = _aws("bedrock-runtime", url)

    def rank(query: str, documents: Sequence[str]) -> Ranked:
        body = {"query": query, "documents": list(documents), "top_n": top_n, "api_version": 2}
        answer = json.loads(client.invoke_model(modelId=ARN, body=json.dumps(body))["body"].read())
        return [(item["index"], item["relevance_score"], None) for item in answer["results"]]

    return rank


def pinecone(url: str, top_n: int) -> Rank:
    from pinecone import Pinecone, RetryConfig

    client = Pinecone(api_key=KEY, host=url, retry_config=RetryConfig(max_retries=0))

    def rank(query: str, documents: Sequence[str]) -> Ranked:
        # It does not send an empty query: the documents have no text instead.
        texts = list(documents) if query else [{"title": text} for text in documents]
        answer = client.inference.rerank(model=MODEL, query=query or "q", documents=texts, top_n=top_n)
        assert answer.usage.rerank_units == 1
        return [(item.index, item.score, item.document["text"]) for item in answer.data]

    return rank


def google(url: str, top_n: int) -> Rank:
    from google.cloud import discoveryengine_v1 as discoveryengine

    client = discoveryengine.RankServiceClient(transport="rest", client_options={"api_endpoint": url, "api_key": KEY})

    def rank(query: str, documents: Sequence[str]) -> Ranked:
        answer = client.rank(
            discoveryengine.RankRequest(
                ranking_config=client.ranking_config_path("project", "global", "default_ranking_config"),
                query=query,
                records=[
                    discoveryengine.RankingRecord(id=str(index), content=text) for index, text in enumerate(documents)
                ],
                top_n=top_n,
            )
        )
        return [(int(record.id), record.score, record.content) for record in answer.records]

    return rank


def mixedbread(url: str, top_n: int) -> Rank:
    from mixedbread import Mixedbread

    client = Mixedbread(api_key=KEY, base_url=url, max_retries=0)

    def rank(query: str, documents: Sequence[str]) -> Ranked:
        answer = client.rerank(model=MODEL, query=query, input=list(documents), top_k=top_n, return_input=True)
        assert answer.usage.total_tokens > 0
        return [(item.index, item.score, item.input) for item in answer.data]

    return rank


main(
    {
        "voyageai": voyage,
        "dashscope TextReRank": dashscope_v1,
        "dashscope Client": dashscope_v2,
        "boto3 rerank": bedrock_rerank,
        "boto3 invoke_model": bedrock_invoke,
        "pinecone": pinecone,
        "google-cloud-discoveryengine": google,
        "mixedbread": mixedbread,
    }
)

"""The native dialect. Clients of Cohere, Jina, vLLM and Infinity use it too; they ignore its extra fields."""

from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.dialects.native_request import RerankRequest
from app.api.dialects.native_response import RerankResponse
from app.api.errors import ERROR_RESPONSES, ErrorBody
from app.api.json_route import JsonRoute
from app.api.ranking import answer, rank
from app.api.stored import with_stored
from app.telemetry.record import record_of

router = APIRouter(tags=["rerank"], route_class=JsonRoute)

NOT_FOUND: dict[str, Any] = {"model": ErrorBody, "description": "The store has none of the ids, or no such model"}
RESPONSES = ERROR_RESPONSES | {404: NOT_FOUND}
ROUTES = ("/rerank/query", "/reranking", "/v1/rerank", "/v2/rerank")
# Of OpenVINO Model Server, KServe, OpenRouter, Azure AI Foundry and DashScope, for clients that only change the host.
OTHER_ROUTES = (
    "/v3/rerank",
    "/openai/v1/rerank",
    "/openai/v2/rerank",
    "/api/v1/rerank",
    "/providers/cohere/v2/rerank",
    "/v1/reranks",
    "/reranks",
    "/compatible-api/v1/reranks",
)


async def rerank(body: RerankRequest, request: Request) -> Response:
    """Order `documents` by their relevance to `query`."""
    body = await with_stored(body, request)
    ranking, info = await rank(request, body)
    return answer(ranking, RerankResponse.of(body, ranking, info.model, record_of(request.scope)), body)


for path in ROUTES:
    router.post(path, response_model=RerankResponse, responses=RESPONSES, summary="Rank documents")(rerank)
for path in OTHER_ROUTES:
    router.post(path, response_model=RerankResponse, include_in_schema=False)(rerank)

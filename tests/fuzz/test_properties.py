"""What holds for any input, of the parts that only compute, and of the service as a whole."""

import json
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tokenizers import Tokenizer

from app.api.body import parsed_bytes
from app.api.dialects.dashscope import DashScopeRequest
from app.api.dialects.google import GoogleRequest
from app.api.dialects.mixedbread import MixedbreadRequest
from app.api.dialects.native_request import RerankRequest
from app.api.dialects.nim import NimRequest
from app.api.dialects.pinecone import PineconeRequest
from app.api.dialects.tei import AnyRequest, TeiRequest
from app.api.dialects.vllm import ScoreRequest
from app.api.errors import explain
from app.engines.models.source import EMBEDDED
from app.engines.openvino import bucket_length, parts
from app.engines.tokenization import PairTokenizer
from app.serving.cache import ScoreCache
from app.serving.queues import take_batch
from tests.fuzz.service import HEADERS, ROUTES, SEEDS, Service

any_input = settings(deadline=None, suppress_health_check=list(HealthCheck))

NAMES = st.sampled_from(sorted({name for seed in SEEDS for name in seed} | {"text", "id", "metadata"}))
# Surrogates too: JSON can write them, and what has them cannot be sent back.
TEXTS = st.text(max_size=30) | st.text(st.characters(), max_size=5) | st.just("\ud800")
NUMBERS = st.integers() | st.floats() | st.just(10**400) | st.sampled_from([0, 1, -1, True, 1e308])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | TEXTS, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def near_valid(draw: st.DrawFn) -> Any:
    """A valid body with some of its fields changed."""
    body = dict(draw(st.sampled_from(SEEDS)))
    return body | draw(st.dictionaries(NAMES, VALUES, max_size=3))


BODIES = near_valid() | VALUES


MODELS = [RerankRequest, TeiRequest, AnyRequest, NimRequest, ScoreRequest]
MODELS += [DashScopeRequest, GoogleRequest, MixedbreadRequest, PineconeRequest]


@pytest.mark.parametrize("model", MODELS)
def test_a_value_is_a_request_or_an_error_that_can_be_told(model: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(model)

    @any_input
    @given(BODIES)
    def parse(body: Any) -> None:
        try:
            adapter.validate_python(body)
        except ValidationError as error:
            problems = [problem | {"loc": ("body", *problem["loc"])} for problem in error.errors()]
            status, message = explain(problems, "application/json")
            assert status in (400, 413, 422)
            assert 0 < len(message.encode()) < 10_000

    parse()


@any_input
@given(
    st.integers(0, len(ROUTES) - 1),
    st.integers(0, len(HEADERS) - 1) | st.just(0),
    BODIES.map(lambda body: json.dumps(body).encode()) | st.binary(max_size=200),
    st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), max_size=2),
)
def test_a_body_is_answered_or_refused_and_leaves_nothing(
    service: Service, route: int, headers: int, body: bytes, edits: list[tuple[int, bytes]]
) -> None:
    for place, piece in edits:
        body = body[:place] + piece + body[place + len(piece) :]
    service.send(route, headers, body)
    assert parsed_bytes(body) >= len(body)


LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=30).map(sorted)


@any_input
@given(st.lists(LENGTHS, min_size=1, max_size=6), st.integers(1, 4096), st.sampled_from([None, 0.0, 0.125, 0.5, 1.0]))
def test_a_batch_has_the_first_queues_longest_and_fits(
    queues: list[list[int]], budget: int, max_padding: float | None
) -> None:
    batch = take_batch(queues, budget, max_padding)
    lengths = [queues[queue][place] for queue, place in batch]
    assert batch[0] == (0, len(queues[0]) - 1)
    assert len(set(batch)) == len(batch)
    longest = queues[0][-1]
    assert max(lengths) == longest
    assert len(batch) == 1 or (sum(lengths) if max_padding is None else len(batch) * longest) <= budget
    assert max_padding is None or min(lengths) >= (1 - max_padding) * longest
    # Of each queue from its end, so that taking one does not move the next.
    for queue in {queue for queue, _ in batch}:
        places = [place for number, place in batch if number == queue]
        assert places == sorted(places, reverse=True)


@any_input
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60), st.integers(1, 5000))
def test_parts_hold_each_pair_once_and_as_many_tokens_as_they_may(lengths: list[int], tokens: int) -> None:
    split = parts(lengths, tokens)
    assert sorted(index for part in split for index in part) == list(range(len(lengths)))
    for part in split:
        width = bucket_length(max(lengths[index] for index in part))
        assert len(part) == 1 or len(part) * width <= tokens
        for length in (lengths[index] for index in part):
            assert 0 <= width - length < (32 if length <= 512 else length / 4)
    assert bucket_length(bucket_length(lengths[0])) == bucket_length(lengths[0])


@cache
def tokenizer(length: int) -> PairTokenizer:
    return PairTokenizer(Tokenizer.from_file(str(EMBEDDED / "tokenizer.json")), length)


WINDOWS = st.sampled_from([16, 17, 40, 64])
WHOLE_TEXTS = st.text(max_size=200)  # without surrogates: those are refused before


@any_input
@given(WHOLE_TEXTS, st.lists(WHOLE_TEXTS, min_size=1, max_size=3), WINDOWS, st.none() | st.integers(1, 40))
def test_pairs_and_windows_of_any_text_fit(query: str, documents: list[str], length: int, limit: int | None) -> None:
    for pair in tokenizer(length).encode(query, documents, limit):
        assert pair.length <= length
        assert len(pair.type_ids) == pair.length
        assert limit is None or int((pair.type_ids == 1).sum()) <= limit + 1
    for document, spans in zip(documents, tokenizer(length).windows(query, documents, limit), strict=True):
        assert spans
        assert all(0 <= start <= end <= len(document) for start, end in spans)
        assert all(first < second for (first, _), (second, _) in pairwise(spans))


@any_input
@given(st.lists(st.tuples(WHOLE_TEXTS, WHOLE_TEXTS), max_size=6), st.none() | st.integers(1, 9))
def test_keys_are_equal_for_equal_pairs_only(pairs: list[tuple[str, str]], limit: int | None) -> None:
    keys = ScoreCache("model", 10, 60).keys(pairs, limit)
    assert len(set(keys)) == len(set(pairs))
    joined = [(query + document[:1], document[1:]) for query, document in pairs]
    others = ScoreCache("model", 10, 60).keys([pair for pair in joined if pair not in pairs], limit)
    assert not set(keys) & set(others)
    assert not set(keys) & set(ScoreCache("model", 10, 60).keys(pairs, (limit or 0) + 10))


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has no build for this machine")
def test_bodies_mutated_by_the_code_that_they_reach() -> None:
    command = [sys.executable, "-m", "tests.fuzz.bodies", "3000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "3000 bodies" in done.stdout

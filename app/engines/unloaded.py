"""What is left of an engine without its model in memory: its facts."""
# ruff: noqa: ARG002 (the signatures of Engine)

from collections.abc import Sequence
from typing import NoReturn

from app.engines.padding import Shape
from app.engines.probes import ProbeSet
from app.engines.protocol import Engine
from app.errors import Unavailable
from app.types import Pair, Span


class Unloaded:
    """Stands for an engine until it is loaded again. It scores nothing: requests wait for the load."""

    def __init__(self, engine: Engine) -> None:
        self.info = engine.info
        self.schedule = engine.schedule
        self.probes: ProbeSet | None = None
        self.self_test = engine.self_test
        self.activate = engine.activate
        """Cached scores are answered during a reload."""

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        max_tokens_per_doc: int | None = None,
        instruction: str | None = None,
    ) -> list[Pair]:
        _refuse()

    def windows(
        self, query: str, documents: Sequence[str], max_tokens: int | None = None, instruction: str | None = None
    ) -> list[list[Span]]:
        _refuse()

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        _refuse()

    def padded_tokens(self, pairs: Sequence[Pair]) -> list[int]:
        return [pair.length for pair in pairs]

    def shapes(self) -> list[Shape]:
        return []

    def warm_up(self) -> float:
        return 0.0

    def clear_memory(self) -> None:
        pass

    def cancel(self) -> None:
        pass


def _refuse() -> NoReturn:
    raise Unavailable("The model is not loaded")

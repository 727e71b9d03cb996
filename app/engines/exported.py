"""What the engines of exported models share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from app.engines.models.artefact import Manifest
from app.engines.models.source import digest
from app.engines.padding import timed, warm_up_pairs
from app.engines.protocol import Activate, EngineInfo
from app.engines.selftest import SelfTest
from app.engines.tokenization import PairTokenizer
from app.types import Pair, Span


class ExportedEngine(ABC):
    """The part of an `Engine` that the export's folder decides: pairs, activation and description."""

    info: EngineInfo

    def __init__(self, folder: Path, max_length: int | None) -> None:
        """Raises `StartupError` if the folder is not an export."""
        self._folder = folder
        self._manifest = manifest = Manifest.read(folder)
        self._max_length = min(max_length or manifest.max_length, manifest.max_length)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer = PairTokenizer(tokenizer, self._max_length, manifest.template, manifest.prompt)
        self.probes = manifest.probes
        self.self_test: SelfTest | None = None

    def _describe(self, **computed: Any) -> EngineInfo:
        """The record of this engine. `computed`: the fields about how it computes."""
        manifest = self._manifest
        return EngineInfo(
            model=manifest.model,
            revision=manifest.revision,
            contents=digest(self._folder),
            compiled=False,
            max_length=self._max_length,
            declared_length=manifest.max_length,
            activation=manifest.activation if manifest.score_calibration is None else "sigmoid",
            score_calibration=manifest.score_calibration,
            labels=manifest.labels,
            template=manifest.template,
            long_documents=manifest.long_documents,
            fusion=manifest.fusion,
            languages=manifest.languages,
            **computed,
        )

    @abstractmethod
    def score(self, pairs: Sequence[Pair]) -> list[float]: ...

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        max_tokens_per_doc: int | None = None,
        instruction: str | None = None,
    ) -> list[Pair]:
        return self._tokenizer.encode(query, documents, max_tokens_per_doc, instruction)

    def windows(
        self, query: str, documents: Sequence[str], max_tokens: int | None = None, instruction: str | None = None
    ) -> list[list[Span]]:
        return self._tokenizer.windows(query, documents, max_tokens, instruction)

    @property
    def activate(self) -> Activate:
        scores = self._manifest.scores
        return lambda logits: scores(np.array(logits, np.float32)).tolist()

    def warm_up(self) -> float:
        pairs = warm_up_pairs(self._manifest.pad_token_id, self._max_length)
        for pair in pairs:
            self.score([pair])
        return timed(self.score, pairs)

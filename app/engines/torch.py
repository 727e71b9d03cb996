"""The torch engine: any model that `sentence_transformers.CrossEncoder` loads, on CPU, CUDA or MPS."""

import logging
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from app.engines.checkpoint import load_model
from app.engines.exportable import Exportable
from app.engines.forward import TENSOR_NAMES, Forward, Library, Padded, compile_forward
from app.engines.models.artefact import shipped_probes
from app.engines.models.source import ModelSource, digest
from app.engines.packing import alike, pack
from app.engines.padding import Shape, common_shapes, timed
from app.engines.preprocessing import PROBE, OwnPreprocessing
from app.engines.prompts import default_prompt, pair_tokenizer
from app.engines.protocol import Activate, EngineInfo
from app.engines.schedule import Schedule
from app.engines.scorer import Classifier, Scorer, make_scorer
from app.engines.selftest import SelfTest
from app.engines.torch_device import card, clear_memory, fetch, inference_on, load_finite, pick_device, precisions
from app.errors import StartupError, first_line
from app.types import Pair, Span

log = logging.getLogger(__name__)

# Short and long rows, alone and in batches: torch compiles and allocates for these shapes before the first request.
WARM_UP_SHAPES = ((1, 16), (1, 128), (8, 64), (4, 256))
BATCH_TOKENS = {"cpu": 1024, "cuda": 16384, "mps": 4096}
PROBE_LENGTHS = (40, 12, 25, 64)


class TorchEngine:
    """Owns the model. Logits are always float32."""

    def __init__(
        self,
        source: ModelSource,
        device: str,
        max_length: int | None,
        threads: int,
        precision: str = "auto",
        compiled: bool = False,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        packed: bool | None = None,
    ) -> None:
        """Load the model. Raises `StartupError` if the device is missing or the model cannot be loaded.

        `packed`: compute batches without padding if the model allows it. None: on CUDA only, where this is faster.
        """
        torch.set_num_threads(threads)
        self._device = pick_device(device)
        self._launching = threading.Lock()
        self.schedule = Schedule(batch_tokens=BATCH_TOKENS[self._device.type])
        precision, self._model = load_finite(
            precisions(self._device) if precision == "auto" else (precision,),
            partial(load_model, source, self._device, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle),
        )
        declared: int = self._model.max_seq_length
        limit = self._model.max_seq_length = min(max_length or declared, declared)
        self.probes = shipped_probes(Path(source.location)) if source.is_local else None
        self.self_test: SelfTest | None = None
        tokenizer = pair_tokenizer(self._model, source, limit)
        self._preprocessing = tokenizer or OwnPreprocessing(self._model, default_prompt(self._model))
        self._scorer: Scorer | None = None
        with inference_on(self._device):
            if tokenizer is None:
                log.info("This model prepares its own inputs: its tokenizer decides how documents are cut")
                self._forward: Forward = Library(self._model, self._model.preprocess([PROBE]))
            else:
                self._forward = self._own_forward(self._device.type == "cuda" if packed is None else packed)
            compiled = compiled and self._compile()
        self.info = EngineInfo(
            model=source.name,
            revision=getattr(self._model.config, "_commit_hash", None) or source.revision,
            contents=digest(source.location),
            device=str(self._device),
            backend="torch",
            precision=precision,
            compiled=compiled,
            threads=threads,
            max_length=limit,
            declared_length=declared,
            activation=type(self._model.activation_fn).__name__.lower(),
            labels=dict(self._model.config.id2label),
            template=tokenizer.template if tokenizer else None,
            long_documents=getattr(self._model.config, "long_documents", "truncate"),
            fusion=getattr(self._model.config, "fusion", "off"),
            languages=tuple(getattr(self._model.config, "languages", ())),
            **card(self._device),
            packed=self._forward.packed,
        )

    def _own_forward(self, packed: bool) -> Forward:
        """Padded, or packed if that is wanted and gives the same logits. If no scorer fits, the library's."""
        names = [name for name in TENSOR_NAMES if name in self._model.tokenizer(*PROBE)]
        library = Library(self._model, dict.fromkeys(names, ()) | {"modality": "text", "logits_to_keep": 1})
        probes = [self._probe(min(length, self._model.max_seq_length)) for length in PROBE_LENGTHS]
        try:
            scorer = make_scorer(self._model).eval()
            padded = Padded(scorer, names, self._model.tokenizer.pad_token_id or 0, self._device)
            given = padded(probes)
            if not isinstance(scorer, Classifier) and not alike(given, library(probes), self._model.dtype):
                raise ValueError("different scores")
        except Exception as error:
            log.info("The forward pass of sentence-transformers is used: %s", first_line(error))
            return library
        self._scorer, self.tensor_names = scorer, names
        return (pack(scorer, names, self._device, probes, given.float()) if packed else None) or padded

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(each.numel() for each in self._model.parameters())

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        max_tokens_per_doc: int | None = None,
        instruction: str | None = None,
    ) -> list[Pair]:
        return self._preprocessing.encode(query, documents, max_tokens_per_doc, instruction)

    def windows(
        self, query: str, documents: Sequence[str], max_tokens: int | None = None, instruction: str | None = None
    ) -> list[list[Span]]:
        return self._preprocessing.windows(query, documents, max_tokens, instruction)

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        # On CUDA two threads call this: one launches a batch while the other waits for its logits.
        with inference_on(self._device):
            with self._launching:
                logits = fetch(self._forward(pairs))
            return logits()

    def shapes(self) -> list[Shape]:
        return common_shapes(self.info.max_length, self.schedule.batch_tokens)

    def padded_tokens(self, pairs: Sequence[Pair]) -> list[int]:
        lengths = [pair.length for pair in pairs]
        return lengths if self.info.packed else [max(lengths)] * len(lengths)

    @property
    def activate(self) -> Activate:
        function = self._model.activation_fn
        return lambda logits: function(torch.tensor(logits, dtype=torch.float32)).tolist()

    def warm_up(self) -> float:
        for rows, length in WARM_UP_SHAPES:
            pairs = [self._probe(min(length, self.info.max_length))] * rows
            self.score(pairs)
        return timed(self.score, pairs)

    def clear_memory(self) -> None:
        clear_memory(self._device)

    def cancel(self) -> None:
        pass  # torch cannot stop a running inference

    def exportable(self) -> Exportable:
        """Raises `StartupError` if the model cannot be exported."""
        if self._scorer is None:
            raise StartupError(f"{self.info.model} prepares its own inputs or has its own head: it runs on torch only")
        return Exportable.of(self._scorer, self._model, self.info, tuple(self.tensor_names))

    def _probe(self, length: int) -> Pair:
        return self.encode(PROBE[0], [" ".join([PROBE[1]] * (length // 8 + 1))], length)[0]

    def _compile(self) -> bool:
        batches = [[self._probe(length)] * rows for rows, length in WARM_UP_SHAPES]
        return compile_forward(self._forward, self._model.dtype, [self._probe(32), self._probe(16)], batches)

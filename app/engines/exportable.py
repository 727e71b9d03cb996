"""What the export reads from a loaded torch model."""

from dataclasses import dataclass
from typing import Literal, cast

from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer

from app.engines.padding import ACTIVATIONS
from app.engines.prompts import default_prompt
from app.engines.protocol import EngineInfo
from app.engines.scorer import Scorer
from app.engines.segments import INPUTS
from app.errors import StartupError


@dataclass(frozen=True, slots=True)
class Exportable:
    """A loaded model, and the facts about it that its exported form needs."""

    scorer: Scorer
    inputs: tuple[str, ...]
    """Names of its tensors, in the order in which they are passed."""
    tokenizer: Tokenizer
    activation: Literal["sigmoid", "identity"]
    pad_token_id: int
    prompt: str
    """Text before every query."""

    @property
    def shares_prefixes(self) -> bool:
        """Whether a row may hold several pairs: see `app.engines.segments`."""
        return self.inputs == INPUTS

    @classmethod
    def of(cls, scorer: Scorer, model: CrossEncoder, info: EngineInfo, inputs: tuple[str, ...]) -> "Exportable":
        """Raises `StartupError` if the model's activation cannot be exported."""
        if info.activation not in ACTIVATIONS:
            raise StartupError(f"{info.model} has the activation {info.activation}: it runs on torch only")
        return cls(
            scorer=scorer,
            inputs=inputs,
            tokenizer=model.tokenizer.backend_tokenizer,
            activation=cast(Literal["sigmoid", "identity"], info.activation),
            pad_token_id=model.tokenizer.pad_token_id or 0,
            prompt=(default_prompt(model) or "") if info.template is None else "",
        )

"""What is converted, and which parts of it stay in floating point."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from app.engines.exportable import Exportable
from app.engines.models.artefact import Precision
from app.engines.padding import Int64s, pad
from app.engines.segments import lay_out
from app.types import Pair

# First layers with a feed-forward part in floating point, from the first attempt to the last. They see the raw
# embeddings and round worst. The product that ends the first layer always stays in floating point: that costs half as
# much as the whole part, and is usually enough.
FLOAT_LAYERS = (0, 1, 3)
LAST_PRODUCT = r".*[./]layers?\.0[./](output|mlp[./](Wo|down_proj))[./].*"
# The head's few products decide the score.
HEAD = r".*[./](pooler|classifier|head|score)[./].*"


@dataclass(frozen=True, slots=True)
class Conversion:
    """A model and the precision to convert it to."""

    exportable: Exportable
    precision: Precision
    calibration: Sequence[Pair]
    """Pairs for tracing, and for quantisation if the precision is int8."""
    float_layers: int
    """int8 only: the number of first layers with a feed-forward part in floating point."""

    def float_nodes(self) -> list[str]:
        """Patterns for the names of the nodes that stay in floating point."""
        layers = [rf".*[./]layers?\.{layer}[./](?!att).*" for layer in range(self.float_layers)]
        return [*layers, LAST_PRODUCT, HEAD]

    def example(self) -> tuple[torch.Tensor, ...]:
        """A small batch for tracing: the two shortest pairs."""
        return self._tensors(sorted(self.calibration, key=lambda pair: pair.length)[:2])

    def calibration_tensors(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """The calibration pairs, one at a time."""
        return (self._tensors([pair]) for pair in self.calibration)

    def arrays(self, pairs: Sequence[Pair]) -> dict[str, Int64s]:
        """The model's inputs by name, in their order."""
        if self.exportable.shares_prefixes:
            return lay_out([[pair] for pair in pairs], self.exportable.pad_token_id).arrays
        arrays = pad(pairs, self.exportable.pad_token_id)
        return {name: arrays[name] for name in self.exportable.inputs}

    def _tensors(self, pairs: Sequence[Pair]) -> tuple[torch.Tensor, ...]:
        return tuple(map(torch.from_numpy, self.arrays(pairs).values()))


class Logits(torch.nn.Module):  # type: ignore[misc]
    """The model as a function from positional tensors to logits, which both converters can trace."""

    def __init__(self, exportable: Exportable) -> None:
        super().__init__()
        self.scorer, self.names = exportable.scorer, exportable.inputs

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.scorer(**dict(zip(self.names, tensors, strict=True)))
        return logits

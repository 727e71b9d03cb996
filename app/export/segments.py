"""Whether a decoder can be exported with several pairs in a row."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch

from app.engines.exportable import Exportable
from app.engines.packing import alike
from app.engines.padding import pad
from app.engines.scorer import LastToken
from app.engines.segments import INPUTS, lay_out
from app.errors import first_line
from app.types import Pair

log = logging.getLogger(__name__)

ROW_PAIRS = 3


def with_segments(exportable: Exportable, pairs: Sequence[Pair]) -> Exportable:
    """The same with inputs for rows of several pairs, if the model then gives the same logits. If not, unchanged.

    `pairs`: some must share a prefix.
    """
    scorer = exportable.scorer
    if not isinstance(scorer, LastToken):
        return exportable
    try:
        if _has_local_attention(scorer.transformer.config):
            raise ValueError("its attention is local")
        row = _row_of(pairs)
        padded, laid = pad(row, exportable.pad_token_id), lay_out([row], exportable.pad_token_id)
        with torch.inference_mode():
            alone = scorer(**{name: torch.from_numpy(padded[name]) for name in exportable.inputs}).flatten()
            shared = scorer(**{name: torch.from_numpy(array) for name, array in laid.arrays.items()}).flatten()
        if not alike(shared[laid.ends], alone, scorer.transformer.dtype):
            raise ValueError("different scores")
    except Exception as error:
        log.info("Pairs of this model do not share a row: %s", first_line(error))
        return exportable
    return replace(exportable, inputs=INPUTS)


def _row_of(pairs: Sequence[Pair]) -> list[Pair]:
    """The first pairs that share a prefix. Raises `ValueError`."""
    for _, group in groupby(pairs, lambda pair: id(pair.prefix)):
        row = list(group)[:ROW_PAIRS]
        if len(row) > 1 and row[0].prefix is not None:
            return row
    raise ValueError("no two pairs share a prefix")


def _has_local_attention(config: Any) -> bool:
    """Whether some layers see only the nearest tokens: the mask of segments has no such limit."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds != {"full_attention"} or bool(getattr(config, "sliding_window", None))

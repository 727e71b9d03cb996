"""A batch without padding: all pairs in one row, where each pair attends to itself only.

The engine then computes no padding tokens. It packs a model only after a test on the loaded model shows that packing
does not change the scores.
"""

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from app.engines.checkpoint import first_position
from app.engines.scorer import Classifier, Scorer
from app.errors import first_line
from app.types import Pair

log = logging.getLogger(__name__)

ATTENTION = "reranker_packed"
# The kernel processes this many queries at a time, so rounding the longest length up to it costs nothing. A compiled
# model then sees fewer different numbers.
BLOCK = 128
# The logits of a pair may differ between batches by this many rounding errors of the model's precision.
ROUNDINGS, LEAST_TOLERANCE = 32, 1e-4
FULL = 0


@torch.library.custom_op("reranker::packed_attention", mutates_args=())  # type: ignore[untyped-decorator]
def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, scale: float, window: int, causal: bool
) -> Tensor:
    """Attention of each segment to itself: the CPU implementation, and the reference for CUDA.

    Shapes: query, key and value (tokens, heads, channels), `starts` (segments + 1,). `window`: how many tokens to each
    side a token attends to, 0 for all. `causal`: whether it attends only to itself and to tokens before it.
    """
    return torch.cat(
        [
            _segment(query[start:end], key[start:end], value[start:end], scale, window, causal)
            for start, end in pairwise(starts.tolist())
        ]
    )


@packed_attention.register_fake  # type: ignore[untyped-decorator]
def _(query: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def _segment(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int, causal: bool) -> Tensor:
    seen = None
    if window or causal:
        places = torch.arange(len(query))
        distance = places[:, None] - places
        seen = distance.abs() <= (window or len(query))
        if causal:
            seen &= distance >= 0
    query, key, value = (each.transpose(0, 1) for each in (query, key, value))
    # Several heads may share one head of keys and values.
    attended = scaled_dot_product_attention(query, key, value, seen, scale=scale, enable_gqa=len(key) < len(query))
    return attended.transpose(0, 1)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls. Shapes (1, heads, tokens, channels).

    The segments have no default, so a model that does not pass them on fails.
    """
    # transformers' windows include the token itself.
    window = sliding_window - 1 if sliding_window else FULL
    causal = bool(getattr(module, "is_causal", False))
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    if query.device.type == "cuda":
        return _on_cuda(q, k, v, cu_seq_lens_q, max_length_q, scaling, window, causal)[None], None
    return packed_attention(q, k, v, cu_seq_lens_q, scaling, window, causal)[None], None


def _on_cuda(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scale: float, window: int, causal: bool
) -> Tensor:
    """Like `packed_attention`, with torch's kernel for half precision."""
    from torch.nn.attention.varlen import varlen_attn

    before = window or -1
    seen = (before, 0 if causal else before)
    # Do not branch on the scale: in a compiled model it is a symbol, and a branch would break the graph.
    shared = key.shape[1] < query.shape[1]
    attended = varlen_attn(
        query, key, value, starts, starts, longest, longest, scale=scale, window_size=seen, enable_gqa=shared
    )
    return cast(Tensor, attended)


AttentionInterface.register(ATTENTION, _attend)


class Packed:
    """The forward pass with all pairs in one row."""

    packed = True

    def __init__(self, scorer: Scorer, inputs: Sequence[str], device: torch.device) -> None:
        """`inputs`: names of the tensors that the model takes."""
        self._device = device
        self._scorer = scorer
        self._first_position = first_position(scorer.transformer)
        self._has_types = "token_type_ids" in inputs
        self._call: Callable[..., Any] = scorer

    def __call__(self, pairs: Sequence[Pair]) -> Tensor:
        lengths = np.array([pair.length for pair in pairs], np.int32)
        starts = np.concatenate([[0], lengths.cumsum()])
        tokens = int(starts[-1])
        positions = np.arange(tokens) - np.repeat(starts[:-1], lengths) + self._first_position
        ids, types = ([getattr(pair, name) for pair in pairs] for name in ("ids", "type_ids"))
        # One transfer for all tensors.
        host = np.concatenate([*ids, *types, positions, starts], dtype=np.int64)
        row, segments = to_device(host, self._device).split([3 * tokens, len(starts)])
        id_row, type_row, position_row = row.view(3, 1, tokens)
        logits: Tensor = self._call(
            input_ids=id_row,
            position_ids=position_row,
            **({"token_type_ids": type_row} if self._has_types else {}),
            cu_seq_lens_q=segments.int(),
            max_length_q=-(-int(lengths.max()) // BLOCK) * BLOCK,
        )
        return logits.reshape(len(pairs))

    def compile(self) -> None:
        self._call = torch.compile(self._scorer, dynamic=True)

    def restore(self) -> None:
        self._call = self._scorer


def pack(
    scorer: Scorer, inputs: Sequence[str], device: torch.device, probes: Sequence[Pair], expected: Tensor
) -> Packed | None:
    """The model's forward pass without padding, or None if it does not give the `expected` logits.

    If it returns None, the model is unchanged. Shape of `expected`: (probes,). The probes need different lengths.
    """
    classifier: Any = scorer.transformer
    before = classifier.config._attn_implementation
    reasons = []
    # The head of a classifier is inside the model, so a hook gives it the token that it reads.
    for attach in (_first_tokens, _means) if isinstance(scorer, Classifier) else (None,):
        packed = Packed(scorer, inputs, device)
        hook = None
        try:
            if not classifier.is_backend_compatible():
                raise TypeError("its attention cannot be replaced")
            classifier.set_attn_implementation(ATTENTION)
            hook = attach and attach(classifier)
            given = packed(probes).float()
            if alike(given, expected, classifier.dtype):
                return packed
            reasons.append(f"different scores ({(given - expected).abs().max():.2g} apart)")
        except Exception as error:
            reasons.append(first_line(error))
        if hook:
            hook.remove()
        classifier.set_attn_implementation(before)
    log.info("Batches are padded: this model cannot run without padding: %s", "; ".join(dict.fromkeys(reasons)))
    return None


def alike(given: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether logits are equal within the rounding errors of `dtype`."""
    tolerance = max(LEAST_TOLERANCE, ROUNDINGS * torch.finfo(dtype).eps)
    return bool(torch.allclose(given, expected, rtol=tolerance, atol=tolerance))


def _first_tokens(classifier: Any) -> Any:
    """After the last layer, keep only the first token of each segment, as a batch of one-token rows."""
    layers = max((each for each in classifier.base_model.modules() if isinstance(each, torch.nn.ModuleList)), key=len)

    def pool(_: Any, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        first = hidden[0, kwargs["cu_seq_lens_q"][:-1]][:, None]
        return (first, *output[1:]) if isinstance(output, tuple) else first

    return layers[-1].register_forward_hook(pool, with_kwargs=True)


def _means(classifier: Any) -> Any:
    """After the encoder, replace each segment by its mean, as a batch of one-token rows."""

    def pool(_: Any, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        hidden, starts = output.last_hidden_state[0], kwargs["cu_seq_lens_q"]
        lengths = starts.diff()
        segments = torch.arange(len(lengths), device=hidden.device).repeat_interleave(lengths, output_size=len(hidden))
        sums = hidden.new_zeros((len(lengths), hidden.shape[1]), dtype=torch.float32)
        sums = sums.index_add(0, segments, hidden.float())
        output.last_hidden_state = (sums / lengths[:, None]).to(hidden.dtype)[:, None]
        return output

    return classifier.base_model.register_forward_hook(pool, with_kwargs=True)


def to_device(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """On CUDA, copy from pinned memory: the next batch is prepared during the transfer."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

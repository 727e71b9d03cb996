"""Attention as products and one exponential, which is often faster than the fused kernel.

The softmax of the scores s is exp(s) / sum(exp(s)). With e = exp(s), the result of attention is (e · V) / (e · 1). A
zero removes a padding token: in its row of V and in the column of ones. So no mask is added to the scores, no maximum
is searched, and the division is made once for each token and head.

Scores are limited to ±80: beyond that, exp and its sums leave the range of bfloat16.

Attention to the tokens nearby (a sliding window, as in ModernBERT) is computed in blocks. The fused kernel computes the
scores of all pairs of tokens there, and a mask removes most of them.
"""

from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

LARGEST_SCORE = 80.0
# Below any sum that a token attends to.
SMALLEST_SUM = np.float32(1e-37)
# The scores of a pair take 2 bytes for each head and pair of tokens: 32 MB with 16 heads at this length.
MOST_TOKENS = 1024
# Rows of up to this many reaches are as fast as a whole: in blocks, each token meets those of three.
WHOLE_REACHES = 3
QUERY, KEY, VALUE, MASK, SCALE = range(5)
FLAT_RANK = 3


def expand_attention(model: ov.Model, max_length: int) -> int:
    """Replace every attention to all tokens, or to those nearby, that are not padding.

    `max_length`: tokens of the longest pair. If there are more than `MOST_TOKENS`, only attention to tokens nearby is
    replaced. Changes the model. Returns the number of replacements.
    """
    inputs = {name: node for node in model.get_parameters() for name in node.output(0).get_names()}
    found = [node for node in model.get_ordered_ops() if node.get_type_name() == "ScaledDotProductAttention"]
    if "attention_mask" not in inputs or not found:
        return 0
    length = min(max_length, MOST_TOKENS)
    reaches: dict[str, int | None] = {}
    blocks: dict[int, Blocks] = {}
    ones = ops.unsqueeze(ops.convert(inputs["attention_mask"], "f32"), ops.constant(-1))
    expanded = 0
    for node in found:
        if node.get_attributes()["causal"] or node.get_input_size() <= MASK:
            continue
        mask = node.input_value(MASK)
        name = mask.get_node().get_name()
        if name not in reaches:
            reaches[name] = _reach(model, mask, length)
        reach = reaches[name]
        if reach is None or (reach == length < max_length):
            continue
        if reach == length:
            result = _attend(*_inputs(node, ones))
        elif _is_one_token(mask) and _is_one_token(node.input_value(QUERY)):
            result = _first_token(*_inputs(node, ones), reach)
        elif _is_one_token(mask):
            continue
        else:
            blocks[reach] = blocks.get(reach) or Blocks(inputs["attention_mask"], reach)
            result = _in_blocks(*_inputs(node, ones), blocks[reach])
        node.output(0).replace(result.output(0))
        expanded += 1
    model.validate_nodes_and_infer_types()
    return expanded


def _reach(model: ov.Model, mask: Any, length: int) -> int | None:
    """To how many tokens before and after it each token attends; `length` if to all. None if the mask is another one.

    Computes the mask of a pair of `length` tokens.
    """
    rows = np.array([[1] * (length - 2) + [0, 0], [1] * length])
    part = ov.Model([ops.result(mask)], model.get_parameters(), "mask")
    inputs = {
        name: rows if name == "attention_mask" else rows * 0
        for node in model.get_parameters()
        for name in node.output(0).get_names()
    }
    found = ov.Core().compile_model(part, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)[0]
    attends = found if found.dtype == bool else found > -1
    if attends.shape[1] != 1:
        return None
    reach = int(attends[1, 0, 0].sum()) - 1
    tokens = np.arange(length)
    is_near = np.abs(tokens[:, None] - tokens) <= reach
    expected = is_near[: attends.shape[-2]] & (rows[:, None, None] > 0)
    # Rows of padding tokens may attend to anything.
    differs = (attends != expected) & (rows[:, None, : attends.shape[-2], None] > 0)
    if differs.any():
        return None
    return length if reach == length - 1 else reach


def _is_one_token(value: Any) -> bool:
    """Whether the tokens that attend, in the dimension before the last, are one."""
    return bool(value.get_partial_shape()[-2].get_max_length() == 1)


def _inputs(node: Any, ones: Any) -> tuple[Any, Any, Any, Any]:
    """Scaled queries, keys, values without padding, and a column of ones with zeros for padding."""
    _skip_quantiser(node.input(QUERY))
    _skip_quantiser(node.input(KEY))
    query, key = node.input_value(QUERY), node.input_value(KEY)
    size = query.get_partial_shape()[-1].get_length()
    scale = node.input_value(SCALE) if node.get_input_size() > SCALE else ops.constant(np.float32(size**-0.5))
    value = _without_padding(node.input_value(VALUE), ones)
    return ops.multiply(query, scale).output(0), key, value, ops.unsqueeze(ones, ops.constant(1)).output(0)


def _attend(query: Any, key: Any, value: Any, counts: Any, near: Any = None) -> Any:
    """Attention to all tokens, or with the weights `near` of zero and one."""
    e = ops.exp(ops.clamp(ops.matmul(query, key, False, True), -LARGEST_SCORE, LARGEST_SCORE))
    if near is not None:
        e = ops.multiply(e, near)
    total = ops.matmul(e, counts, False, False)
    if near is not None:
        total = ops.maximum(total, ops.constant(SMALLEST_SUM))  # a padding token may have only padding near it
    return ops.divide(ops.matmul(e, value, False, False), total)


def _first_token(query: Any, key: Any, value: Any, counts: Any, reach: int) -> Any:
    """Attention of the first token to those nearby. The last layer may compute no other token."""
    first = (ops.slice(each, _ints(0), _ints(reach + 1), _ints(1), _ints(2)) for each in (key, value, counts))
    near_keys, near_values, near_counts = first
    return _attend(query, near_keys, near_values, near_counts)


def _in_blocks(query: Any, key: Any, value: Any, counts: Any, blocks: "Blocks") -> Any:
    """Attention to tokens nearby, from the scores of each block with itself and with its neighbours."""
    near_keys, near_values, near_counts = (blocks.with_neighbours(each) for each in (key, value, counts))
    found = _attend(blocks.split(query), near_keys, near_values, near_counts, blocks.near)
    return blocks.join(found, value.get_partial_shape()[-1].get_length())


class Blocks:
    """How the tokens of a batch are divided into blocks, each of which attends to itself and to its neighbours.

    A short row is one block without neighbours. Everything here is computed for each batch, from its width.
    """

    def __init__(self, mask: Any, reach: int) -> None:
        """`mask`: the attention mask in the model's inputs, of shape (pairs, width). A block has `reach` tokens."""
        width = ops.slice(ops.shape_of(mask), _ints(1), _ints(2), _ints(1))
        self._is_long = ops.convert(ops.greater(width, _ints(WHOLE_REACHES * reach)), "i64")
        self._around = ops.multiply(self._is_long, _ints(reach))
        self._size = ops.select(ops.greater(self._around, _ints(0)), self._around, width)
        self._rest = ops.floor_mod(ops.negative(width), self._size)
        self._count = ops.divide(ops.add(width, self._rest), self._size)
        self._width = width
        tokens = _range(self._size)
        others = ops.subtract(_range(ops.add(self._size, ops.multiply(self._around, _ints(2)))), self._around)
        distance = ops.abs(ops.subtract(ops.unsqueeze(tokens, _ints(1)), ops.unsqueeze(others, _ints(0))))
        self.near = ops.convert(ops.less_equal(distance, _ints(reach)), "f32")
        """Which tokens are near which: 1 or 0, of shape (block, block and neighbours)."""

    def split(self, tokens: Any, before: Any = None) -> Any:
        """Tokens in blocks: (pairs, heads, width, size) to (pairs, heads, blocks, block, size), with zeros at the end.

        `before`: zeros at the start, and as many more at the end.
        """
        before = _ints(0) if before is None else before
        start = ops.concat([_ints(0, 0), before, _ints(0)], 0)
        end = ops.concat([_ints(0, 0), ops.add(self._rest, before), _ints(0)], 0)
        padded = ops.pad(tokens, start, end, "constant", ops.constant(np.float32(0)))
        size = tokens.get_partial_shape()[-1].get_length()
        return ops.reshape(padded, ops.concat([_ints(0, 0, -1), self._size, _ints(size)], 0), True)

    def with_neighbours(self, tokens: Any) -> Any:
        """Like `split`, with the blocks before and after each block."""
        blocks = self.split(tokens, self._around)
        second, third = self._is_long, ops.multiply(self._is_long, _ints(2))
        parts = [
            self._part(blocks, _ints(0), self._around),
            self._part(blocks, second, self._size),
            self._part(blocks, third, self._around),
        ]
        return ops.concat(parts, 3)

    def _part(self, blocks: Any, first: Any, tokens: Any) -> Any:
        stop = ops.concat([ops.add(first, self._count), tokens], 0)
        return ops.slice(blocks, ops.concat([first, _ints(0)], 0), stop, _ints(1, 1), _ints(2, 3))

    def join(self, blocks: Any, size: int) -> Any:
        """The inverse of `split`."""
        return ops.slice(ops.reshape(blocks, _ints(0, 0, -1, size), True), _ints(0), self._width, _ints(1), _ints(2))


def _range(stop: Any) -> Any:
    return ops.range(ops.constant(np.int64(0)), ops.squeeze(stop, _ints(0)), ops.constant(np.int64(1)), "i64")


def _ints(*values: int) -> Any:
    return ops.constant(np.array(values, np.int64))


def _skip_quantiser(edge: Any) -> None:
    """Read floats where an int8 model quantises a query or key: with AMX, transposing int8 costs more than it saves."""
    source = edge.get_source_output()
    while source.get_node().get_type_name() in ("Transpose", "Reshape", "FakeQuantize"):
        node = source.get_node()
        if len(source.get_target_inputs()) > 1:
            return
        if node.get_type_name() == "FakeQuantize":
            edge.replace_source_output(node.input_value(0))
            return
        edge, source = node.input(0), node.input_value(0)


def _without_padding(value: Any, ones: Any) -> Any:
    """The values, with zeros for padding tokens. Multiplying before the values are split into heads is faster."""
    transpose = value.get_node()
    reshape = transpose.input_value(0).get_node() if transpose.get_type_name() == "Transpose" else None
    if reshape is not None and reshape.get_type_name() == "Reshape":
        flat = reshape.input_value(0)
        rank = flat.get_partial_shape().rank
        if rank.is_static and rank.get_length() == FLAT_RANK and len(flat.get_target_inputs()) == 1:
            reshape.input(0).replace_source_output(ops.multiply(flat, ones).output(0))
            return value
    return ops.multiply(value, ops.unsqueeze(ones, ops.constant(1))).output(0)

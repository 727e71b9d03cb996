"""Attention as products and one exponential, which CPUs with bf16 instructions compute faster than the fused kernel.

The softmax of the scores s is exp(s) / sum(exp(s)). With e = exp(s), the result of attention is (e · V) / (e · 1). A
zero removes a padding token: in its row of V and in the column of ones. So no mask is added to the scores, no maximum
is searched, and the division is made once for each token and head.

Scores are limited to ±80: beyond that, exp and its sums leave the range of bfloat16.
"""

from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

LARGEST_SCORE = 80.0
# Below any sum that a token attends to.
SMALLEST_SUM = np.float32(1e-37)
# Of tokens, for attention to tokens nearby.
SMALLEST_BLOCK = 16
# The scores of a pair take 2 bytes for each head and pair of tokens: 32 MB with 16 heads at this length.
MOST_TOKENS = 1024
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
        if reach < length and _is_one_token(mask) != _is_one_token(node.input_value(QUERY)):
            continue
        node.output(0).replace(_products(node, ones, reach if reach < length else None).output(0))
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


def _products(node: Any, ones: Any, reach: int | None) -> Any:
    """Attention to all tokens, or to those at a distance of up to `reach`."""
    _skip_quantiser(node.input(QUERY))
    _skip_quantiser(node.input(KEY))
    query, key = node.input_value(QUERY), node.input_value(KEY)
    size = query.get_partial_shape()[-1].get_length()
    scale = node.input_value(SCALE) if node.get_input_size() > SCALE else ops.constant(np.float32(size**-0.5))
    query = ops.multiply(query, scale).output(0)
    value, counts = _without_padding(node.input_value(VALUE), ones), ops.unsqueeze(ones, ops.constant(1)).output(0)
    if reach is None:
        return _attend(query, key, value, counts)
    if _is_one_token(query):  # only the first token of the last layer is computed
        first_keys, first_values, first_counts = (
            ops.slice(each, _ints(0), _ints(reach + 1), _ints(1), _ints(2)) for each in (key, value, counts)
        )
        return _attend(query, first_keys, first_values, first_counts)
    block = max(reach, SMALLEST_BLOCK)
    length = ops.slice(ops.shape_of(query), _ints(2), _ints(3), _ints(1))
    rest = ops.floor_mod(ops.negative(length), _ints(block))
    near = (np.abs(np.arange(block)[:, None] + block - np.arange(3 * block)) <= reach).astype(np.float32)
    near_keys, near_values, near_counts = (_with_neighbours(each, rest, block) for each in (key, value, counts))
    found = _attend(_blocks(query, rest, block), near_keys, near_values, near_counts, ops.constant(near))
    joined = ops.reshape(found, _ints(0, 0, -1, size), True)
    return ops.slice(joined, _ints(0), length, _ints(1), _ints(2))


def _attend(query: Any, key: Any, value: Any, counts: Any, near: Any = None) -> Any:
    e = ops.exp(ops.clamp(ops.matmul(query, key, False, True), -LARGEST_SCORE, LARGEST_SCORE))
    if near is not None:
        e = ops.multiply(e, near)
    total = ops.matmul(e, counts, False, False)
    if near is not None:
        total = ops.maximum(total, ops.constant(SMALLEST_SUM))  # a padding token may have only padding near it
    return ops.divide(ops.matmul(e, value, False, False), total)


def _blocks(tokens: Any, rest: Any, block: int, before: int = 0) -> Any:
    """Tokens in blocks: (pairs, heads, tokens, size) to (pairs, heads, blocks, block, size), with zeros at the end.

    `before`: zeros at the start, and as many more at the end.
    """
    end = ops.concat([_ints(0, 0), ops.add(rest, _ints(before)), _ints(0)], 0)
    padded = ops.pad(tokens, _ints(0, 0, before, 0), end, "constant", ops.constant(np.float32(0)))
    size = tokens.get_partial_shape()[-1].get_length()
    return ops.reshape(padded, _ints(0, 0, -1, block, size), True)


def _with_neighbours(tokens: Any, rest: Any, block: int) -> Any:
    """Each block with the one before and the one after it."""
    blocks = _blocks(tokens, rest, block, before=block)
    ends = ((0, -2), (1, -1), (2, np.iinfo(np.int64).max))
    parts = [ops.slice(blocks, _ints(start), _ints(stop), _ints(1), _ints(2)) for start, stop in ends]
    return ops.concat(parts, 3)


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

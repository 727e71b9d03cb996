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
# The scores of a pair take 2 bytes for each head and pair of tokens: 32 MB with 16 heads at this length.
MOST_TOKENS = 1024
QUERY, KEY, VALUE, MASK, SCALE = range(5)
FLAT_RANK = 3


def expand_attention(model: ov.Model, max_length: int) -> int:
    """Replace every attention with a mask that covers padding only, for pairs of up to `max_length` tokens.

    Changes the model. Returns the number of replacements.
    """
    inputs = {name: node for node in model.get_parameters() for name in node.output(0).get_names()}
    found = [node for node in model.get_ordered_ops() if node.get_type_name() == "ScaledDotProductAttention"]
    if "attention_mask" not in inputs or not found:
        return 0
    masks: dict[str, bool] = {}
    ones = ops.unsqueeze(ops.convert(inputs["attention_mask"], "f32"), ops.constant(-1))
    expanded = 0
    for node in found:
        if node.get_attributes()["causal"] or node.get_input_size() <= MASK:
            continue
        mask = node.input_value(MASK)
        name = mask.get_node().get_name()
        if name not in masks:
            masks[name] = _covers_padding_only(model, mask, max_length)
        if masks[name]:
            node.output(0).replace(_products(node, ones).output(0))
            expanded += 1
    model.validate_nodes_and_infer_types()
    return expanded


def _covers_padding_only(model: ov.Model, mask: Any, max_length: int) -> bool:
    """Whether a mask lets each token attend to all tokens of its row that are not padding.

    Computes the mask of the longest pair: local attention shows on no shorter one.
    """
    rows = np.array([[1] * (max_length - 2) + [0, 0], [1] * max_length])
    part = ov.Model([ops.result(mask)], model.get_parameters(), "mask")
    inputs = {
        name: rows if name == "attention_mask" else rows * 0
        for node in model.get_parameters()
        for name in node.output(0).get_names()
    }
    found = ov.Core().compile_model(part, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)[0]
    attends = found if found.dtype == bool else found > -1
    expected = np.broadcast_to(rows[:, None, None] > 0, (2, 1, attends.shape[-2], max_length))
    return attends.shape[1] == 1 and bool((attends == expected).all())


def _products(node: Any, ones: Any) -> Any:
    _skip_quantiser(node.input(QUERY))
    _skip_quantiser(node.input(KEY))
    query, key = node.input_value(QUERY), node.input_value(KEY)
    size = query.get_partial_shape()[-1].get_length()
    scale = node.input_value(SCALE) if node.get_input_size() > SCALE else ops.constant(np.float32(size**-0.5))
    scores = ops.matmul(ops.multiply(query, scale), key, False, True)
    e = ops.exp(ops.clamp(scores, -LARGEST_SCORE, LARGEST_SCORE))
    context = ops.matmul(e, _without_padding(node.input_value(VALUE), ones), False, False)
    return ops.divide(context, ops.matmul(e, ops.unsqueeze(ones, ops.constant(1)), False, False))


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
    return ops.multiply(value, ops.unsqueeze(ones, ops.constant(1)))

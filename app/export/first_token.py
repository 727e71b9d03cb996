"""Compute the last layer for the first token only, if the model's head reads only that token.

The operations after the last attention work on each token separately, and so do its queries. One row of queries gives
the same result. This saves a seventh of the work of a model with six layers.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

# For a node with one token as output: the indices of the inputs that need one token only, and the token axis of each.
# None if the node needs all tokens.
Sources = dict[int, int] | None

QUERIES, MASK = 0, 3
ELEMENTWISE = {"Add", "Subtract", "Multiply", "Divide", "Convert", "Gelu", "Relu", "Tanh", "Sigmoid", "Swish", "Erf"}
HIDDEN_STATE_RANK = 3


def keep_first_token(model: ov.Model) -> bool:
    """Change the model in place. Returns False if its head does not select the first token.

    Walks from the head towards the inputs. A node computes one token if all its readers need one token and its type has
    a rule for that. Otherwise it stays whole, and a slice after it selects the first token.
    """
    head = _first_token_read(model)
    if head is None:
        return False
    readers: dict[str, list[tuple[Any, int]]] = defaultdict(list)

    def read(edge: Any, axis: int) -> None:
        readers[edge.get_source_output().get_node().get_name()].append((edge, axis))

    read(head.input(0), 1)
    for node in reversed(model.get_ordered_ops()):
        edges = readers.pop(node.get_name(), None)
        if edges is None:
            continue
        rule = RULES.get(node.get_type_name())
        axis, rank = edges[0][1], node.output(0).get_partial_shape().rank
        known = rule is not None and rank.is_static and _is_read_by(node, edges)
        inputs = rule(node, axis, rank.get_length()) if rule and known else None
        if inputs is None:
            _slice(edges)
            continue
        for index, axis in inputs.items():
            read(node.input(index), axis)
    model.validate_nodes_and_infer_types()
    return True


def _first_token_read(model: ov.Model) -> Any | None:
    """The last selection of tokens from (rows, tokens, channels), if it selects index 0."""
    for node in reversed(model.get_ordered_ops()):
        if (
            node.get_type_name() == "Gather"
            and _rank(node, 0) == HIDDEN_STATE_RANK
            and node.input(0).get_partial_shape()[1].is_dynamic
        ):
            return node if (_constant(node, 1), _constant(node, 2)) == ([0], [1]) else None
    return None


def _is_read_by(node: Any, edges: list[tuple[Any, int]]) -> bool:
    """Whether these edges are all readers of the node and agree on the token axis."""
    readers = sum(len(output.get_target_inputs()) for output in node.outputs())
    return readers == len(edges) and len({axis for _, axis in edges}) == 1


def _slice(edges: list[tuple[Any, int]]) -> None:
    for edge, axis in edges:
        first = ops.slice(edge.get_source_output(), [0], [1], [1], [axis])
        edge.replace_source_output(first.output(0))


def _elementwise(node: Any, axis: int, rank: int, indices: Iterable[int] | None = None) -> Sources:
    """Inputs with the axis, except those that broadcast a single element along it."""
    found = {}
    for index in range(node.get_input_size()) if indices is None else indices:
        own, shape = axis - rank + _rank(node, index), node.input(index).get_partial_shape()
        if own >= 0 and (shape[own].is_dynamic or shape[own].get_length() > 1):
            found[index] = own
    return found


def _along_other_axes(node: Any, axis: int, rank: int) -> Sources:
    return {0: axis} if axis not in [other % rank for other in _constant(node, 1)] else None


def _softmax(node: Any, axis: int, rank: int) -> Sources:
    return {0: axis} if node.get_attributes()["axis"] % rank != axis else None


def _matmul(node: Any, axis: int, rank: int) -> Sources:
    return {0: _rank(node, 0) - 2} if axis == rank - 2 and not node.get_attributes()["transpose_a"] else None


def _attention(node: Any, axis: int, rank: int) -> Sources:
    if axis != rank - 2 or node.get_attributes()["causal"]:
        return None
    masks = range(MASK, min(MASK + 1, node.get_input_size()))
    return {QUERIES: axis, **(_elementwise(node, axis, rank, masks) or {})}


def _transpose(node: Any, axis: int, _output_rank: int) -> Sources:
    return {0: _constant(node, 1)[axis]}


def _reshape(node: Any, axis: int, _output_rank: int) -> Sources:
    return {0: axis} if _regroups_after(node, axis) else None


RULES: dict[str, Callable[[Any, int, int], Sources]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "MVN": _along_other_axes,
    "VariadicSplit": _along_other_axes,
    "Softmax": _softmax,
    "MatMul": _matmul,
    "ScaledDotProductAttention": _attention,
    "Transpose": _transpose,
    "Reshape": _reshape,
}


def _regroups_after(node: Any, axis: int) -> bool:
    """Whether the node reshapes only the axes after this one. If so, makes the new shape fit any number of tokens."""
    before, after = list(node.input(0).get_partial_shape()), list(node.output(0).get_partial_shape())
    kept = axis + 1
    static = all(size.is_static for size in before[kept:] + after[kept:])
    if len(before) < kept or before[:kept] != after[:kept] or not static:
        return False
    sizes = [size.get_length() for size in after[kept:]]
    if prod(sizes) != prod(size.get_length() for size in before[kept:]):
        return False
    form = ops.constant(np.array([0] * kept + sizes, np.int64))
    node.input(1).replace_source_output(form.output(0))
    node.set_attribute("special_zero", True)
    return True


def _rank(node: Any, index: int) -> int:
    rank = node.input(index).get_partial_shape().rank
    return int(rank.get_length()) if rank.is_static else -1


def _constant(node: Any, index: int) -> list[int]:
    """The elements of a constant input; empty for any other input."""
    source = node.input_value(index).get_node()
    return np.atleast_1d(source.data).tolist() if source.get_type_name() == "Constant" else []

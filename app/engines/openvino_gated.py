"""Gated feed-forward layers, as ModernBERT, Qwen and Llama have them.

With AMX and bf16 the CPU plugin fuses such a layer into one operation that divides its work among half of the threads.
With one thread it divides by zero, which ends the process (OpenVINO 2026.4). The operation is only made of weights
that are stored as (outputs, inputs).
"""

import numpy as np
import openvino as ov
from openvino import opset13 as ops

GATES = ("Gelu", "Swish")
# The plugin keeps weights with this mark in half precision.
HALF_PRECISION = "decompression_0"


def keep_gates_apart(model: ov.Model) -> int:
    """Store the last weights of each gated layer as (inputs, outputs). Changes the model; returns the number of layers.

    The result is the same.
    """
    found = [node for node in model.get_ordered_ops() if _ends_gated_layer(node)]
    for node in found:
        weights = node.input_value(1).get_node().input_value(0).get_node()
        stored = ops.convert(ops.constant(np.ascontiguousarray(weights.data.T)), "f32")
        stored.get_rt_info()[HALF_PRECISION] = ""
        node.output(0).replace(ops.matmul(node.input_value(0), stored, False, False).output(0))
    model.validate_nodes_and_infer_types()
    return len(found)


def _ends_gated_layer(node: ov.Node) -> bool:
    """Whether it is a product of `gate(x) * y` with constant weights in half precision."""
    if node.get_type_name() != "MatMul" or not node.get_attributes()["transpose_b"]:
        return False
    product, weights = (node.input_value(index).get_node() for index in (0, 1))
    if product.get_type_name() != "Multiply" or weights.get_type_name() != "Convert":
        return False
    is_constant = weights.input_value(0).get_node().get_type_name() == "Constant"
    return is_constant and any(product.input_value(side).get_node().get_type_name() in GATES for side in (0, 1))

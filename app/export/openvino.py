"""Convert a torch model to an OpenVINO file."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from app.engines.padding import Int64s
from app.export.conversion import Conversion, Logits
from app.export.first_token import MASK, keep_first_token
from app.types import Pair

# SmoothQuant's alpha: how much of the large activations of a few channels moves into the weights before rounding. On
# the embedded model 0.9 is a little more exact than 0.8 and 0.95.
ALPHA = 0.9


def write_openvino(module: Logits, conversion: Conversion, file: Path) -> None:
    # Convert from torch directly: an ONNX file in between would split attention into single operations.
    names = conversion.exportable.inputs
    model = ov.convert_model(module, example_input=conversion.example(), input=[ov.PartialShape([-1, -1])] * len(names))
    for node, name in zip(model.inputs, names, strict=True):
        node.get_tensor().set_names({name})
    _unmask_empty_rows(model)
    keep_first_token(model)
    if conversion.precision == "int8":
        model = _quantise(model, conversion)
    ov.save_model(model, str(file), compress_to_fp16=conversion.precision != "fp32")


def _unmask_empty_rows(model: ov.Model) -> None:
    """Let a padding token attend to everything if its mask lets it attend to nothing.

    With local attention, a token far behind the end of its row sees padding only. OpenVINO's softmax over nothing gives
    NaN, and the next layer with global attention passes NaN on to the real tokens. PyTorch gives zeros.
    """
    masks: dict[str, tuple[Any, list[Any]]] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ScaledDotProductAttention" and _has_boolean_mask(node):
            source = node.input_value(MASK)
            masks.setdefault(source.get_node().get_name(), (source, []))[1].append(node.input(MASK))
    if len(masks) < 2:  # noqa: PLR2004 (a single mask covers padding only, and every row has a token)
        return
    for source, readers in masks.values():
        is_empty = ops.logical_not(ops.reduce_logical_or(source, np.array([-1]), keep_dims=True))
        mask = ops.logical_or(source, is_empty)
        for reader in readers:
            reader.replace_source_output(mask.output(0))
    model.validate_nodes_and_infer_types()


def _has_boolean_mask(attention: Any) -> bool:
    if attention.get_input_size() <= MASK:
        return False
    return bool(attention.input_value(MASK).get_element_type() == ov.Type.boolean)


def _quantise(model: ov.Model, conversion: Conversion) -> Any:
    import nncf  # slow to import, and only int8 needs it

    def feed(pair: Pair) -> dict[str, Int64s]:
        return conversion.arrays([pair])

    return nncf.quantize(
        model,
        nncf.Dataset(conversion.calibration, feed),
        model_type=nncf.ModelType.TRANSFORMER,
        # Symmetric: the plugin computes products of values with a zero point up to twice as slowly.
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(conversion.calibration),
        ignored_scope=nncf.IgnoredScope(patterns=conversion.float_nodes(), validate=False),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=ALPHA)
        ),
    )

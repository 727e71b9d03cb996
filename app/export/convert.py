"""Torch models to OpenVINO and ONNX files, quantised where asked. Part of the export; needs the extra `export`."""

import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.engines.exportable import Exportable
from app.engines.models.artefact import MODEL_FILES, Backend, Precision
from app.engines.padding import pad
from app.export.first_token import MASK, keep_first_token
from app.types import Pair

# Large activations of a few channels are moved into the weights before these are rounded.
SMOOTH_QUANT_ALPHA = 0.8
# Left in floating point: what rounds worst and costs little. The feed-forward part of the first layer sees the raw
# embeddings, and the head's few products decide the score. A model that rounds worse than others needs more of it.
FLOAT_LAYERS = (1, 3)
HEAD = r".*[./](pooler|classifier|head)[./].*"
ONNX_OPSET = 17
SMALLEST = 1e-5


class _Logits(torch.nn.Module):  # type: ignore[misc]
    """The model as a function of positional tensors, which is what both converters trace."""

    def __init__(self, exportable: Exportable) -> None:
        super().__init__()
        self.model, self.names = exportable.model, exportable.inputs

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(**dict(zip(self.names, tensors, strict=True))).logits
        return logits


@dataclass(frozen=True, slots=True)
class Conversion:
    """What is converted, and how."""

    exportable: Exportable
    precision: Precision
    calibration: Sequence[Pair]
    """Pairs to trace with, and to quantise on where the precision is int8."""
    float_layers: int
    """With int8: of so many first layers the feed-forward part stays in floating point."""

    def not_quantised(self) -> list[str]:
        """Patterns of the names of what stays in floating point."""
        first = "|".join(map(str, range(self.float_layers)))
        return [rf".*[./]layers?\.({first})[./](?!att).*", HEAD]


def write_model(conversion: Conversion, backend: Backend, folder: Path) -> None:
    """Convert, quantise, and save into the folder."""
    write = _write_openvino if backend == "openvino" else _write_onnx
    # eval() of the inner model does not reach the wrapper's dropout.
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every size it reads; the comparison shows what matters
        write(_Logits(conversion.exportable).eval(), conversion, folder / MODEL_FILES[backend])


def _example(conversion: Conversion) -> tuple[torch.Tensor, ...]:
    exportable = conversion.exportable
    arrays = pad(sorted(conversion.calibration, key=lambda pair: pair.length)[:2], exportable.pad_token_id)
    return tuple(torch.from_numpy(arrays[name]) for name in exportable.inputs)


def _run(module: _Logits, exportable: Exportable, pairs: Sequence[Pair]) -> None:
    for pair in pairs:
        arrays = pad([pair], exportable.pad_token_id)
        module(*(torch.from_numpy(arrays[name]) for name in exportable.inputs))


def _write_openvino(module: _Logits, conversion: Conversion, file: Path) -> None:
    import openvino as ov

    exportable = conversion.exportable
    # Straight from torch: by way of ONNX the attention falls apart into single operations.
    model = ov.convert_model(
        module,
        example_input=_example(conversion),
        input=[ov.PartialShape([-1, -1])] * len(exportable.inputs),
    )
    for node, name in zip(model.inputs, exportable.inputs, strict=True):
        node.get_tensor().set_names({name})
    _unmask_empty_rows(model)
    keep_first_token(model)
    if conversion.precision == "int8":
        model = _quantise_openvino(model, conversion)
    ov.save_model(model, str(file), compress_to_fp16=conversion.precision != "fp32")


def _unmask_empty_rows(model: Any) -> None:
    """Let a padding token attend to everything where it would attend to nothing.

    With local attention a token far behind the end of its row sees padding only. OpenVINO's softmax over nothing gives
    NaN, which the next layer of global attention passes on to the real tokens. PyTorch gives zeros.
    """
    import openvino as ov
    from openvino import opset13 as ops

    attentions = [node for node in model.get_ordered_ops() if node.get_type_name() == "ScaledDotProductAttention"]
    masks: dict[str, tuple[Any, list[Any]]] = {}
    for node in attentions:
        if node.get_input_size() > MASK and node.input_value(MASK).get_element_type() == ov.Type.boolean:
            source = node.input_value(MASK)
            masks.setdefault(source.get_node().get_name(), (source, []))[1].append(node.input(MASK))
    if len(masks) < 2:  # noqa: PLR2004 (one mask is of the padding alone, and every row has a token)
        return
    for source, readers in masks.values():
        is_empty = ops.logical_not(ops.reduce_logical_or(source, np.array([-1]), keep_dims=True))
        mask = ops.logical_or(source, is_empty)
        for reader in readers:
            reader.replace_source_output(mask.output(0))
    model.validate_nodes_and_infer_types()


def _quantise_openvino(model: Any, conversion: Conversion) -> Any:
    import nncf

    exportable = conversion.exportable

    def feed(pair: Pair) -> dict[str, np.ndarray[Any, Any]]:
        arrays = pad([pair], exportable.pad_token_id)
        return {name: arrays[name] for name in exportable.inputs}

    return nncf.quantize(
        model,
        nncf.Dataset(conversion.calibration, feed),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(conversion.calibration),
        ignored_scope=nncf.IgnoredScope(patterns=conversion.not_quantised(), validate=False),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=SMOOTH_QUANT_ALPHA)
        ),
    )


def _write_onnx(module: _Logits, conversion: Conversion, file: Path) -> None:
    exportable, quantised = conversion.exportable, conversion.precision == "int8"
    exportable.model.set_attn_implementation("eager")  # the form that ONNX Runtime's fusions know
    if quantised:
        _smooth(module, lambda: _run(module, exportable, conversion.calibration))
    axes = {name: {0: "rows", 1: "length"} for name in exportable.inputs} | {"logits": {0: "rows"}}
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "model.onnx" if quantised else file
        torch.onnx.export(
            module,
            _example(conversion),
            str(plain),
            input_names=list(exportable.inputs),
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=ONNX_OPSET,
            dynamo=False,
        )
        if quantised:
            _quantise_onnx(plain, file, conversion.not_quantised())


class _Smoothed(torch.nn.Module):  # type: ignore[misc]
    """A linear layer that takes the large channels of its input from the weights: the same function."""

    def __init__(self, linear: torch.nn.Linear, largest: torch.Tensor) -> None:
        super().__init__()
        weights = linear.weight.abs().amax(0).clamp(min=SMALLEST)
        scale = largest.clamp(min=SMALLEST) ** SMOOTH_QUANT_ALPHA / weights ** (1 - SMOOTH_QUANT_ALPHA)
        linear.weight.mul_(scale)
        self.linear = linear
        self.register_buffer("inverse", 1 / scale)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.linear(inputs * self.inverse)
        return outputs


def _smooth(module: torch.nn.Module, run: Callable[[], None]) -> None:
    """Make every linear layer smooth, for the inputs that `run` lets it see (SmoothQuant, arXiv 2211.10438)."""
    largest: dict[str, torch.Tensor] = {}

    def keep(name: str, _: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        seen = inputs[0].abs().flatten(0, -2).amax(0)
        largest[name] = torch.maximum(largest.get(name, seen), seen)

    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)}
    hooks = [layer.register_forward_pre_hook(partial(keep, name)) for name, layer in layers.items()]
    run()
    for hook in hooks:
        hook.remove()
    for name, seen in largest.items():
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, _Smoothed(layers[name], seen))


def _quantise_onnx(plain: Path, file: Path, not_quantised: list[str]) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = [node.name for node in onnx.load(str(plain), load_external_data=False).graph.node]
    quantize_dynamic(
        str(plain),
        str(file),
        per_channel=True,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[name for name in nodes if any(re.match(pattern, name) for pattern in not_quantised)],
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )

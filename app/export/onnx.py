"""Convert a torch model to an ONNX file."""

import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from app.export.conversion import Conversion, Logits

OPSET = 17
SMALLEST = 1e-5
# SmoothQuant's alpha: how much of the large activations of a few channels moves into the weights before rounding.
ALPHA = 0.8


def write_onnx(module: Logits, conversion: Conversion, file: Path) -> None:
    # ONNX Runtime's fusions recognize this form of attention.
    conversion.exportable.scorer.transformer.set_attn_implementation("eager")
    if conversion.precision != "int8":
        _write_float(module, conversion, file)
        return

    def calibrate() -> None:
        for tensors in conversion.calibration_tensors():
            module(*tensors)

    _smooth(module, calibrate)
    with tempfile.TemporaryDirectory() as scratch:
        float_file = Path(scratch) / "model.onnx"
        _write_float(module, conversion, float_file)
        _quantise(float_file, file, conversion.float_nodes())


def _write_float(module: Logits, conversion: Conversion, file: Path) -> None:
    names = conversion.exportable.inputs
    torch.onnx.export(
        module,
        conversion.example(),
        str(file),
        input_names=list(names),
        output_names=["logits"],
        dynamic_axes={name: {0: "rows", 1: "length"} for name in names} | {"logits": {0: "rows"}},
        opset_version=OPSET,
        dynamo=False,
    )


class _Smoothed(torch.nn.Module):  # type: ignore[misc]
    """Computes the same as the linear layer, but scales large input channels down and their weights up."""

    def __init__(self, linear: torch.nn.Linear, largest: torch.Tensor) -> None:
        """`largest` is the largest absolute input of each channel. Changes the weights of `linear`."""
        super().__init__()
        weights = linear.weight.abs().amax(0).clamp(min=SMALLEST)
        scale = largest.clamp(min=SMALLEST) ** ALPHA / weights ** (1 - ALPHA)
        linear.weight.mul_(scale)
        self.linear = linear
        self.register_buffer("inverse", 1 / scale)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.linear(inputs * self.inverse)
        return outputs


def _smooth(module: torch.nn.Module, calibrate: Callable[[], None]) -> None:
    """Replace every linear layer by a smoothed one (SmoothQuant, arXiv 2211.10438).

    `calibrate` runs the module on typical inputs.
    """
    largest: dict[str, torch.Tensor] = {}

    def keep(name: str, _: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        seen = inputs[0].abs().flatten(0, -2).amax(0)
        largest[name] = torch.maximum(largest.get(name, seen), seen)

    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)}
    hooks = [layer.register_forward_pre_hook(partial(keep, name)) for name, layer in layers.items()]
    calibrate()
    for hook in hooks:
        hook.remove()
    for name, seen in largest.items():
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, _Smoothed(layers[name], seen))


def _quantise(float_file: Path, file: Path, float_nodes: list[str]) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = [node.name for node in onnx.load(str(float_file), load_external_data=False).graph.node]
    quantize_dynamic(
        str(float_file),
        str(file),
        per_channel=True,
        # Weights of 7 bits. On x86 CPUs without VNNI, sums of two products of 8 bits exceed the 16 bits that hold them.
        reduce_range=True,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[name for name in nodes if any(re.match(pattern, name) for pattern in float_nodes)],
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )

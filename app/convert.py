"""Torch models to OpenVINO and ONNX files, quantised where asked. Part of the export; needs the extra `export`."""

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.backends.artefact import MODEL_FILES, Backend, Precision
from app.backends.batch import pad
from app.backends.torch import Exportable
from app.tokenization import Pair

# Large activations of a few channels are moved into the weights before these are rounded.
SMOOTH_QUANT_ALPHA = 0.8
# Left in floating point: what rounds worst and costs little. The feed-forward part of the first layer sees the raw
# embeddings, and the head's few products decide the score.
NOT_QUANTISED = (r".*\.layers?\.0\.(?!att).*", r".*\.(pooler|classifier|head)[./].*")
ONNX_OPSET = 17


class _Logits(torch.nn.Module):  # type: ignore[misc]
    """The model as a function of positional tensors, which is what both converters trace."""

    def __init__(self, exportable: Exportable) -> None:
        super().__init__()
        self.model, self.names = exportable.model, exportable.inputs

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(**dict(zip(self.names, tensors, strict=True))).logits
        return logits


def write_model(
    exportable: Exportable, backend: Backend, precision: Precision, folder: Path, calibration: Sequence[Pair]
) -> None:
    """Convert, quantise on the calibration pairs where `precision` is int8, and save into the folder."""
    write = _write_openvino if backend == "openvino" else _write_onnx
    # Dropout of the wrapper stays on unless the wrapper itself is told.
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every size it reads; the comparison shows what matters
        write(_Logits(exportable).eval(), exportable, precision, folder / MODEL_FILES[backend], calibration)


def _example(exportable: Exportable, calibration: Sequence[Pair]) -> tuple[torch.Tensor, ...]:
    arrays = pad(sorted(calibration, key=lambda pair: pair.length)[:2], exportable.pad_token_id)
    return tuple(torch.from_numpy(arrays[name]) for name in exportable.inputs)


def _write_openvino(
    module: _Logits, exportable: Exportable, precision: Precision, file: Path, calibration: Sequence[Pair]
) -> None:
    import openvino as ov

    # Straight from torch: by way of ONNX the attention falls apart into single operations.
    model = ov.convert_model(
        module,
        example_input=_example(exportable, calibration),
        input=[ov.PartialShape([-1, -1])] * len(exportable.inputs),
    )
    for node, name in zip(model.inputs, exportable.inputs, strict=True):
        node.get_tensor().set_names({name})
    if precision == "int8":
        model = _quantise_openvino(model, exportable, calibration)
    ov.save_model(model, str(file), compress_to_fp16=precision != "fp32")


def _quantise_openvino(model: Any, exportable: Exportable, calibration: Sequence[Pair]) -> Any:
    import nncf

    def feed(pair: Pair) -> dict[str, np.ndarray[Any, Any]]:
        arrays = pad([pair], exportable.pad_token_id)
        return {name: arrays[name] for name in exportable.inputs}

    return nncf.quantize(
        model,
        nncf.Dataset(calibration, feed),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(patterns=list(NOT_QUANTISED), validate=False),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=SMOOTH_QUANT_ALPHA)
        ),
    )


def _write_onnx(
    module: _Logits, exportable: Exportable, precision: Precision, file: Path, calibration: Sequence[Pair]
) -> None:
    exportable.model.set_attn_implementation("eager")  # the form that ONNX Runtime's fusions know
    axes = {name: {0: "rows", 1: "length"} for name in exportable.inputs} | {"logits": {0: "rows"}}
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "model.onnx" if precision == "int8" else file
        torch.onnx.export(
            module,
            _example(exportable, calibration),
            str(plain),
            input_names=list(exportable.inputs),
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=ONNX_OPSET,
            dynamo=False,
        )
        if precision == "int8":
            _quantise_onnx(plain, file)


def _quantise_onnx(plain: Path, file: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(plain),
        str(file),
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )

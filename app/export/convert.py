"""Convert a torch model to an OpenVINO or ONNX file. Needs the extra `export`."""

import warnings
from pathlib import Path

import torch

from app.engines.models.artefact import MODEL_FILES, Backend
from app.export.conversion import Conversion, Logits
from app.export.onnx import write_onnx
from app.export.openvino import write_openvino


def write_model(conversion: Conversion, backend: Backend, folder: Path) -> None:
    """Convert the model, quantise it for int8, and save it into the folder. Changes the torch model."""
    write = write_openvino if backend == "openvino" else write_onnx
    # A new module is in training mode even if the module inside is not: eval() switches dropout off.
    module = Logits(conversion.exportable).eval()
    with torch.inference_mode(), warnings.catch_warnings():
        # Tracing warns about every size that it reads. The comparison with the original shows what matters.
        warnings.simplefilter("ignore")
        write(module, conversion, folder / MODEL_FILES[backend])

"""A reranking service: one process, one cross-encoder, one device."""

import sys

# OpenVINO reports every import to its vendor if this package is installed. Blocking the package disables that.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

__version__ = "0.2.0"

"""A reranking service: one process, one cross-encoder, one device."""

import sys

# OpenVINO tells its makers of every import where it finds this package. Nobody asked for that.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

__version__ = "0.1.0"

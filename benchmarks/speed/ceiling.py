"""The peak speed of the CPU: what an engine could reach at best."""

import numpy as np
import openvino as ov
from openvino import opset13 as ops

SIZE = 4096
REPEATS = 5
KINDS = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}


def matmul_ceiling(kind: str, threads: int) -> float:
    """GFLOP/s of the fastest of a few products of two 4096 × 4096 matrices, on `threads` threads."""
    left = ops.parameter([SIZE, SIZE], np.float32)
    if kind == "int8":
        rounded = ops.fake_quantize(left, *map(np.float32, (-4, 4, -4, 4)), 256)
        weights = np.random.default_rng(0).integers(-127, 128, (SIZE, SIZE)).astype(np.int8)
        scale = ops.constant(np.full((SIZE, 1), 0.01, np.float32))
        product = ops.matmul(rounded, ops.multiply(ops.convert(ops.constant(weights), np.float32), scale), False, True)
    else:
        weights = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32)
        product = ops.matmul(left, ops.constant(weights), False, True)
    options = {
        "INFERENCE_PRECISION_HINT": KINDS[kind],
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": "1",
        "ENABLE_CPU_PINNING": "NO",
        "PERF_COUNT": "YES",
    }
    request = ov.Core().compile_model(ov.Model([product], [left]), "CPU", options).create_infer_request()
    values = np.random.default_rng(1).standard_normal((SIZE, SIZE)).astype(np.float32)
    seconds = []
    for _ in range(REPEATS):
        request.infer([values])
        nodes = [node for node in request.profiling_info if node.node_type in ("MatMul", "FullyConnected")]
        seconds.append(sum(node.real_time.total_seconds() for node in nodes))
    return float(2 * SIZE**3 / min(seconds) / 1e9)

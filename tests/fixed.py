"""Settings that leave nothing to measure: a process that starts with them serves after a few seconds less."""

# One inference at a time, in small parts: the models of the tests have few documents.
LAYOUT = {"RERANKER_STREAMS": "1", "RERANKER_PART_TOKENS": "512", "RERANKER_BATCH_TOKENS": "1024"}
FIXED = {"RERANKER_BACKEND": "openvino", "RERANKER_PRECISION": "int8", **LAYOUT}

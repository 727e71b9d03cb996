"""A reranking service: one process, one cross-encoder, one device."""

__version__ = "0.1.0"

"""Train a reranker on the public corpora or on your own texts. The embedded model was trained with this code."""

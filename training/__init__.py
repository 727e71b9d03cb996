"""How the embedded model was trained, and how to train a reranker on texts of your own."""

"""`reranker bulk`: rank the rows of a large file in this process."""

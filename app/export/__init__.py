"""`reranker export`: turn a cross-encoder into a folder that is served without torch."""

"""`reranker evaluate`: measure how well a service ranks documents that people have judged."""

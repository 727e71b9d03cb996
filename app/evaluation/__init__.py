"""`reranker evaluate`: how well a service ranks queries with judged documents."""

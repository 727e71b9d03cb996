"""`reranker plan`: how many replicas a load needs, from the speed of this machine."""

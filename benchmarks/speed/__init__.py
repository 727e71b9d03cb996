"""How fast the service ranks, and how well its faster variants rank."""

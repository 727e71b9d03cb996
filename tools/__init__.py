"""Tools for maintaining the repository. The service does not use them."""

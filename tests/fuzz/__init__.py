"""Generated inputs: what no test has thought of. `scripts/fuzz` runs more of them."""

from collections import Counter

counted: Counter[str] = Counter()
"""Inputs of each property."""

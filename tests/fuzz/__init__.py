"""Tests with generated inputs. `scripts/fuzz` runs more of them."""

from collections import Counter

counted: Counter[str] = Counter()
"""Number of inputs by property."""

"""Tests with generated inputs. `scripts/fuzz` runs more of them."""

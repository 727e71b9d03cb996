"""The programs behind the figures in the documentation."""

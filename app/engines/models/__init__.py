"""Models on disk: where they come from, and the exports of them."""

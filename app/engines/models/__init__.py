"""Models on disk, and their exports."""

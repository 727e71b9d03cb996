"""Dialects: one file for each API that clients of other services speak."""

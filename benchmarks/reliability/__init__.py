"""How the service behaves under load, at its limits and for a long time."""

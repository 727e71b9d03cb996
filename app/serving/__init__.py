"""The path of a request, and the life cycle of the engine that serves it."""

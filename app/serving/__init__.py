"""The path of a request, and the life of the engine that serves it."""

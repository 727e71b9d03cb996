"""Engines: the one seam of the service. An engine's libraries are imported only when it is chosen."""

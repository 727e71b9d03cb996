"""The service under frameworks that start and stop it themselves."""

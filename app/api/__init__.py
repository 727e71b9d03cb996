"""HTTP: thin routes that parse, make one call and serialise. FastAPI is imported here and in `app.main` only."""

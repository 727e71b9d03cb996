"""HTTP: thin routes that parse, make one call and serialize. FastAPI is imported here and in `app.main` only."""

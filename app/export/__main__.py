"""`python -m app.export`, the same as `reranker export`."""

import typer

from app.export.command import main

if __name__ == "__main__":
    typer.run(main)

"""What the engines of exported models share."""

from pathlib import Path

from tokenizers import Tokenizer

from app.engines.models.artefact import Manifest
from app.engines.tokenization import PairTokenizer


def exported_tokenizer(folder: Path, manifest: Manifest, max_length: int) -> PairTokenizer:
    """The tokenizer of an exported model, with its template."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return PairTokenizer(tokenizer, max_length, manifest.template, manifest.prompt)

"""The tokenizer that a model was published with, its `tokenizer.json`.

For some models (XLM-RoBERTa, BERT, …) transformers takes only the vocabulary from this file, and the rules from a
class. If the rules of the file differ, the model gets token ids that it was not trained on.
"""

import logging
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from app.errors import UnusableModel, first_line

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

log = logging.getLogger(__name__)

FILE = "tokenizer.json"
# Settings that add tokens to a text, whatever the file says.
ADDED = {"add_bos_token", "add_eos_token"}
# Where the rules of tokenizers differ: case, accents, white space, punctuation, digits, widths, scripts, emoji.
SAMPLES = (
    "What causes the tides? It's the moon's gravity (mostly).",
    "  two  spaces\tand\na line break ",
    "Çà et là, naïve façades: Straße, İstanbul, ½ kg, ﬁne, 12,345.67 e-mail_address@example.org",
    "潮汐由月球引力引起。１２３ カタカナ ｶﾀｶﾅ 한국어 ไทย",
    "Приливы и отливы; η παλίρροια; المد والجزر; גאות ושפל; ज्वार",
    "zero\u200bwidth\u00a0space 🌊👩‍👩‍👧",
)


def use_file(
    model: "CrossEncoder | SentenceTransformer", file: Path, name: str, setting: str = "RERANKER_MODEL"
) -> None:
    """Let the model tokenize as the file says. Raises `UnusableModel` if the file does not fit the model.

    Settings that are not in the file stay in force, because training had them too: `do_lower_case` of
    sentence-transformers, and explicit `add_bos_token` and `add_eos_token`.
    """
    built = getattr(model.tokenizer, "backend_tokenizer", None)
    if built is None or getattr(model[0], "do_lower_case", False):
        return
    try:
        own = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises a plain one
        raise UnusableModel(f"{setting}={name!r}: {file.name} cannot be read: {first_line(error)}") from error
    _add_missing_tokens(own, built)
    if ADDED & model.tokenizer.init_kwargs.keys():
        own.post_processor = built.post_processor
    own.encode_special_tokens = built.encode_special_tokens
    ids = sample_ids(own)
    rows = model[0].model.get_input_embeddings().num_embeddings
    if (largest := max(map(max, ids))) >= rows:
        raise UnusableModel(
            f"{setting}={name!r}: {file.name} does not fit the weights: it gives the token {largest}, but the "
            f"model has {rows} tokens"
        )
    if ids != sample_ids(built):
        log.warning("%s: transformers builds a tokenizer with other token ids than %s. The file is used", name, FILE)
    model.tokenizer._tokenizer = own


def sample_ids(tokenizer: Tokenizer) -> list[list[int]]:
    """The token ids of the samples, alone and as pairs."""
    own = Tokenizer.from_str(tokenizer.to_str())
    own.no_truncation()
    own.no_padding()
    pairs = list(pairwise(SAMPLES))
    return [encoding.ids for encoding in (*own.encode_batch(SAMPLES), *own.encode_batch(pairs))]


def _add_missing_tokens(own: Tokenizer, built: Tokenizer) -> None:
    """Add the special tokens of the configuration that the file lacks."""
    for _, token in sorted(built.get_added_tokens_decoder().items()):
        if own.token_to_id(token.content) is None:
            (own.add_special_tokens if token.special else own.add_tokens)([token])

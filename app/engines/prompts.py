"""Which template or prompt a model reads its pairs in, and its preprocessing."""

import logging
from collections.abc import Sequence
from typing import Any

from sentence_transformers import CrossEncoder

from app.engines.checkpoint import has_modules_file, is_decoder, positive_label
from app.engines.models.source import ModelSource
from app.engines.template import DOCUMENT, FAMILIES, INSTRUCTION, QUERY, SPACE, WORD, Template, named_template
from app.engines.tokenization import PairTokenizer
from app.errors import UnusableModel, first_line

log = logging.getLogger(__name__)

# Pairs with texts that meet the template with letters, punctuation, white space, other scripts, and nothing.
PROBES = [
    ("what is a cross-encoder", "A cross-encoder reads a query and a document together."),
    ("what causes the tides?", "moon"),
    ("(tides)", "- the gravity of the moon\n- the sun\n"),
    ("潮汐", "潮汐由月球引力引起。"),
    ("3.5", "2 + 2 = 4 …"),
    (" spaces ", "  two spaces "),
    ("moon", ""),
]
UNLIMITED = 2**31 - 1
# Placeholders for rendering a chat template. No tokenizer sees them.
QUERY_MARK, DOCUMENT_MARK, INSTRUCTION_MARK = "QqQueryqQ", "DdDocumentdD", "IiInstructioniI"
# By architecture and number of labels: conversions of rerankers, which do not contain their template.
CONVERSIONS = {
    ("Qwen3ForSequenceClassification", 1): "qwen3-reranker",
    ("Qwen2ForSequenceClassification", 2): "mxbai-rerank-v2",
}


def default_prompt(model: CrossEncoder) -> str | None:
    """The prompt that `CrossEncoder.predict` uses if it is given none."""
    return model.prompts.get(model.default_prompt_name) or None if model.default_prompt_name else None


def pair_tokenizer(model: CrossEncoder, source: ModelSource, max_length: int) -> PairTokenizer | None:
    """A tokenizer that gives the same ids as the model's own preprocessing, or None if there is none.

    Raises `UnusableModel` if the model would be served without the template that it was trained with.
    """
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    template = _chosen(model, source)
    if template is not None:
        found = _matching(model, max_length, template, [_ids_of_text(model, template, *pair) for pair in PROBES])
        if found is None:
            raise UnusableModel(
                f"RERANKER_MODEL={source.location!r} cannot be served with this template: its tokenizer gives other "
                "tokens for the whole text than for its parts"
            )
        return found
    template = _rendered(model)
    try:
        expected = [_ids_of_pair(model, *pair) for pair in PROBES]
    except ValueError as error:
        raise UnusableModel(f"RERANKER_MODEL={source.location!r} cannot be served: {first_line(error)}") from None
    if template is not None:
        return _matching(model, max_length, template, expected)
    tokenizer = backend and PairTokenizer(backend, UNLIMITED, prompt=default_prompt(model) or "")
    return tokenizer.within(max_length) if tokenizer and _gives(tokenizer, expected) else None


def _matching(
    model: CrossEncoder, max_length: int, template: Template, expected: Sequence[list[int]]
) -> PairTokenizer | None:
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    for edge in (SPACE, WORD):
        tokenizer = PairTokenizer(backend, UNLIMITED, template.model_copy(update={"edge": edge}))
        if _gives(tokenizer, expected):
            return tokenizer.within(max_length)
    return None


def _gives(tokenizer: PairTokenizer, expected: Sequence[list[int]]) -> bool:
    return all(
        tokenizer.encode(query, [document])[0].ids.tolist() == ids
        for (query, document), ids in zip(PROBES, expected, strict=True)
    )


def _ids_of_pair(model: CrossEncoder, query: str, document: str) -> list[int]:
    ids: list[int] = model.preprocess([(query, document)], prompt=default_prompt(model))["input_ids"][0].tolist()
    return ids


def _ids_of_text(model: CrossEncoder, template: Template, query: str, document: str) -> list[int]:
    ids: list[int] = model.tokenizer(template.fill(query, document), add_special_tokens=False)["input_ids"]
    return ids


def _chosen(model: CrossEncoder, source: ModelSource) -> Template | None:
    """The template of the setting, or else of the model's family. Raises `UnusableModel`."""
    setting = source.template
    if setting is not None:
        try:
            return named_template(setting)
        except ValueError as error:
            raise UnusableModel(f"RERANKER_TEMPLATE={setting!r} is not valid: {error}") from None
    if has_modules_file(source) or not is_decoder(model) or _names_roles(model):
        return None
    architecture = (model.config.architectures or ["?"])[0]
    labels = 1 if positive_label(model) is None else 2
    family = CONVERSIONS.get((architecture, labels))
    if family is None:
        raise UnusableModel(
            f"RERANKER_MODEL={source.location!r} is a {architecture} without a known template, and without its "
            "template a model ranks at random. Set RERANKER_TEMPLATE to the text that it was trained with, such as "
            f"'query: {QUERY} document: {DOCUMENT}', to {' or '.join(FAMILIES)}, or to none"
        )
    log.warning(
        "%s does not contain its template. As a %s with %d label%s it gets that of %s (RERANKER_TEMPLATE sets another)",
        source.name,
        architecture,
        labels,
        "" if labels == 1 else "s",
        family,
    )
    return FAMILIES[family]


def _names_roles(model: CrossEncoder) -> bool:
    """Whether the chat template has places for a query and a document."""
    chat = getattr(model.tokenizer, "chat_template", None)
    return isinstance(chat, str) and all(role in chat for role in ("query", "document"))


def _rendered(model: CrossEncoder) -> Template | None:
    """The model's chat template, with places in it. None if it has none, or if it is not made of constants."""
    if "message" not in model[0].modality_config:
        return None
    prompt = default_prompt(model)
    plain = _render(model, prompt)
    if plain is None or not _has_each_once(plain, QUERY_MARK, DOCUMENT_MARK):
        return None
    instruction, given = None, _render(model, INSTRUCTION_MARK)
    if given and _has_each_once(given, INSTRUCTION_MARK, QUERY_MARK, DOCUMENT_MARK):
        before, _, after = given.partition(INSTRUCTION_MARK)
        if plain.startswith(before) and plain.endswith(after) and len(plain) >= len(before) + len(after):
            instruction, plain = plain[len(before) : len(plain) - len(after)], given
    for mark, place in ((QUERY_MARK, QUERY), (DOCUMENT_MARK, DOCUMENT), (INSTRUCTION_MARK, INSTRUCTION)):
        plain = plain.replace(mark, place)
    try:
        return Template.parse(plain, instruction or "")
    except ValueError:
        return None


def _has_each_once(text: str, *marks: str) -> bool:
    return all(text.count(mark) == 1 for mark in marks)


def _render(model: CrossEncoder, prompt: str | None) -> str | None:
    formatter: Any = model[0].input_formatter
    messages = [formatter.pair_to_messages((QUERY_MARK, DOCUMENT_MARK))]
    if prompt:
        messages = formatter.prepend_prompt_to_messages(messages, prompt)
    options = dict(model[0]._merge_processing_kwargs(None).get("chat_template", {}))
    options.pop("restore_suffix", None)
    try:
        text = model.tokenizer.apply_chat_template(messages[0], tokenize=False, **options)
    except Exception as error:  # a template can raise anything
        log.info("The chat template cannot be rendered: %s", error)
        return None
    return text if isinstance(text, str) else None

"""The text that a model was trained to read around a query and a document."""

from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict

QUERY, DOCUMENT, INSTRUCTION = "{query}", "{document}", "{instruction}"
# White space, or also the word next to it.
SPACE, WORD = r"\s*", r"\s*\S*"


class Parts(NamedTuple):
    """The constant text before the query, between the query and the document, and after the document."""

    before: str
    between: str
    after: str


class Template(BaseModel):
    """A text with the places of the query and of the document, and of an instruction if the model takes one."""

    model_config = ConfigDict(frozen=True)

    text: str
    instruction: str | None = None
    """The model's own instruction. None if it takes none."""
    edge: str = SPACE
    """Which part of the constants next to the query and the document may share tokens with them, as a pattern."""

    @classmethod
    def parse(cls, text: str, instruction: str = "") -> Self:
        """Raises `ValueError` with the reason if a place is missing, occurs twice, or is in the wrong order."""
        for place, least in ((QUERY, 1), (DOCUMENT, 1), (INSTRUCTION, 0)):
            if not least <= text.count(place) <= 1:
                raise ValueError(f"{place} must occur {'once' if least else 'once at most'}")
        if text.index(QUERY) > text.index(DOCUMENT):
            raise ValueError(f"{QUERY} must come before {DOCUMENT}")
        return cls(text=text, instruction=instruction if INSTRUCTION in text else None)

    def parts(self, instruction: str | None = None) -> Parts:
        """The constants with this instruction, or with the model's own."""
        before, _, rest = self.text.partition(QUERY)
        between, _, after = rest.partition(DOCUMENT)
        chosen = (self.instruction if instruction is None else instruction) or ""
        return Parts(*(part.replace(INSTRUCTION, chosen) for part in (before, between, after)))

    def fill(self, query: str, document: str, instruction: str | None = None) -> str:
        """The whole text for a pair."""
        before, between, after = self.parts(instruction)
        return f"{before}{query}{between}{document}{after}"


def _chat(system: str, user: str, answer: str = "") -> str:
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{answer}"
    )


# The formats that families of rerankers were trained with. Their conversions to classifiers do not contain them.
FAMILIES = {
    "qwen3-reranker": Template.parse(
        _chat(
            "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
            'Note that the answer can only be "yes" or "no".',
            f"<Instruct>: {INSTRUCTION}\n<Query>: {QUERY}\n<Document>: {DOCUMENT}",
            "<think>\n\n</think>\n\n",
        ),
        "Given a web search query, retrieve relevant passages that answer the query",
    ),
    "mxbai-rerank-v2": Template.parse(
        _chat(
            "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
            f"query: {QUERY}\ndocument: {DOCUMENT}\n"
            "You are a search relevance expert who evaluates how well documents match search queries. For each "
            "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
            "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:",
        )
    ),
}


def named_template(value: str) -> Template | None:
    """The template that `RERANKER_TEMPLATE` names or contains. None for `none`. Raises `ValueError`."""
    if value == "none":
        return None
    return FAMILIES.get(value) or Template.parse(value.replace("\\n", "\n"))

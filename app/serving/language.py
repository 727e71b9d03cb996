"""Notices that most of what a model for English reads is in another language."""

import logging
import re
from collections import Counter

from app.telemetry.metrics import Metrics
from app.types import RerankQuery

log = logging.getLogger(__name__)

WORD = re.compile(r"[^\W\d_]+")
CHARS = 500
# Documents that are counted before the warning.
ENOUGH = 50
LAST_LATIN = "\u024f"
# Frequent words that are in no other language's list.
ENGLISH = frozenset(["the", "of", "and", "that", "with", "are", "this", "from", "which", "have", "what", "how", "does"])
OTHERS = frozenset(
    word
    for words in (
        "der das und ist nicht für mit auf eine wie zu",  # German
        "le les des est et une dans pour que qui",  # French
        "el los las del en por para una qué y",  # Spanish
        "os não uma com em um são ao",  # Portuguese
        "il di che per sono della gli è",  # Italian
        "het een van niet zijn voor",  # Dutch
        "och att det är som på",  # Swedish
        "og til ikke af",  # Danish, Norwegian
        "się nie jest na z w jak",  # Polish
        "ve bir için bu ile",  # Turkish
        "yang dan untuk dari dengan",  # Indonesian
        "của và là có không",  # Vietnamese
        "și este pe cu",  # Romanian
        "je se na že jako",  # Czech
        "ja ei että ovat",  # Finnish
        "és egy nem hogy az",  # Hungarian
    )
    for word in words.split()
)


def is_english(text: str) -> bool | None:
    """Judged by the letters and by frequent words of the beginning. None: it is not clear."""
    beginning = text[:CHARS].lower()
    letters = [character for character in beginning if character.isalpha()]
    if 2 * sum(character > LAST_LATIN for character in letters) > len(letters):
        return False
    words = WORD.findall(beginning)
    english, other = sum(word in ENGLISH for word in words), sum(word in OTHERS for word in words)
    return None if english == other else english > other


class LanguageWatch:
    """Owns the counts of English and other documents. Reads the first document of each request."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._seen = Counter[bool]()
        self._has_warned = False

    def see(self, query: RerankQuery) -> None:
        """Count a request. Warns once, when most documents are not English."""
        english = is_english(query.documents[0])
        if english is None:
            return
        self._seen[english] += 1
        self._metrics.languages.labels("english" if english else "other").inc()
        if not self._has_warned and self._seen.total() >= ENOUGH and self._seen[False] > self._seen[True]:
            self._has_warned = True
            log.warning(
                "Most documents are not English, and the model reads English only. "
                "Set RERANKER_MODEL=embedded:multilingual"
            )

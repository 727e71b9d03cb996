"""The process of a second model, with a fake engine in it."""

import sys
from collections.abc import Sequence

from app.serving import shadow_worker
from app.types import Pair
from tests.fakes import FakeEngine, words

# A word of documents that this engine cannot score.
FAILS = "unscorable"


class Fussy(FakeEngine):
    def score(self, pairs: Sequence[Pair]) -> list[float]:
        if any(words(FAILS)[0] in pair.ids for pair in pairs):
            raise ValueError("cannot score this")
        return super().score(pairs)


if __name__ == "__main__":
    shadow_worker.load_described = lambda _: Fussy()
    sys.exit(shadow_worker.main(*sys.argv[1:]))

"""One logit for each document, from the scores of its passages."""

import pytest

from app.engines.models.artefact import ScoreCalibration
from app.serving.folding import UNREAD, best_passages, place_unscored
from app.types import Passage, Score


def passage(document: int, start: int = 0) -> Passage:
    return Passage(document, "query", "text", (start, start + 4))


def score(logit: float) -> Score:
    return Score(logit, tokens=8, truncated=False)


def test_the_best_passage_of_each_document_wins() -> None:
    scored = [
        (passage(0, start=0), score(-1.0)),
        (passage(2, start=0), score(0.5)),
        (passage(0, start=4), score(3.0)),
        (passage(0, start=8), score(2.0)),
    ]
    assert best_passages(scored) == {0: scored[2], 2: scored[1]}


def test_the_first_passage_wins_a_tie() -> None:
    scored = [(passage(0, start=0), score(1.0)), (passage(0, start=4), score(1.0))]
    assert best_passages(scored) == {0: scored[0]}


def test_no_passages_give_no_best() -> None:
    assert best_passages([]) == {}


def test_scored_documents_keep_their_logits() -> None:
    assert place_unscored({1: -20.0, 0: 4.0}, (), count=2) == [4.0, -20.0]


@pytest.mark.parametrize("lowest", [4.0, UNREAD, -20.0])
def test_unscored_documents_follow_in_the_order_of_their_places(lowest: float) -> None:
    first, scored, last, middle = place_unscored({1: lowest}, [0.99, 0.5, 0.0, 0.4], count=4)
    assert scored == lowest
    assert last < middle < first < min(lowest, UNREAD)


def test_without_any_score_all_documents_are_below_the_bound() -> None:
    assert place_unscored({}, [0.0, 0.5], count=2) == [UNREAD - 1, UNREAD - 0.5]


def test_a_calibration_gives_no_unscored_document_a_high_score() -> None:
    calibration = ScoreCalibration(scale=0.1, shift=2.0)
    scored, first, last = place_unscored({0: -20.0}, [0.0, 0.99, 0.0], 3, calibration)
    assert scored == -20.0
    assert last < first < scored
    assert 0.1 * first + 2.0 < UNREAD

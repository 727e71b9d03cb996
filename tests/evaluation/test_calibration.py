"""The arithmetic of calibration: known cases, without a model."""

import numpy as np
import pytest

from app.evaluation.calibration import fit, losses, reliability, thresholds


def drawn(scale: float, shift: float, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that are 1 as often as scale and shift say."""
    rng = np.random.default_rng(0)
    logits = rng.normal(3, 2, count)
    return logits, (rng.random(count) < 1 / (1 + np.exp(-(scale * logits + shift)))).astype(float)


def test_scale_and_shift_make_scores_shares() -> None:
    logits, labels = drawn(0.5, -1)
    scale, shift = fit(logits, labels)
    assert (scale, shift) == (pytest.approx(0.5, abs=0.05), pytest.approx(-1, abs=0.1))
    for each in reliability(1 / (1 + np.exp(-(scale * logits + shift))), labels):
        assert each.pairs < 1000 or each.relevant == pytest.approx(each.mean_score, abs=0.05)


def test_no_other_scale_and_shift_are_more_likely() -> None:
    logits, labels = drawn(2.0, -5)
    scale, shift = fit(logits, labels)

    def loss(scale: float, shift: float) -> float:
        return losses(1 / (1 + np.exp(-(scale * logits + shift))), labels)["log_loss"]

    # The labels that are fitted differ from these by less than 1e-3.
    others = [(scale * 1.05, shift), (scale * 0.95, shift), (scale, shift + 0.1), (scale, shift - 0.1)]
    assert all(loss(scale, shift) < loss(*other) for other in others)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e4])
def test_logits_that_separate_the_labels_get_a_finite_scale(unit: float) -> None:
    logits, labels = unit * np.array([-2.0, -1.0, 1.0, 2.0] * 10), np.array([0.0, 0.0, 1.0, 1.0] * 10)
    scale, shift = fit(logits, labels)
    scores = 1 / (1 + np.exp(-(scale * logits + shift)))
    assert np.isfinite([scale, shift]).all()
    assert scores[labels == 1].min() > 0.85
    assert scores[labels == 0].max() < 0.15


def test_equal_logits_give_the_share_of_relevant_documents() -> None:
    scale, shift = fit(np.full(400, 7.0), np.array([1.0, 0.0, 0.0, 0.0] * 100))
    assert 1 / (1 + np.exp(-(scale * 7 + shift))) == pytest.approx(0.25, abs=0.01)


def test_logits_that_fall_with_relevance_get_a_negative_scale() -> None:
    logits, labels = drawn(-1.0, 3)
    assert fit(logits, labels)[0] == pytest.approx(-1, abs=0.1)


def test_thresholds_and_losses_follow_their_definitions() -> None:
    scores, labels = np.array([0.85, 0.5, 0.45, 0.1]), np.array([1.0, 0.0, 1.0, 0.0])
    found = {each.threshold: (each.precision, each.recall) for each in thresholds(scores, labels)}
    assert (found[0.1], found[0.4], found[0.5], found[0.9]) == ((0.5, 1), (2 / 3, 1), (0.5, 0.5), (None, 0))
    assert losses(scores, labels) == {
        "log_loss": pytest.approx(-np.log([0.85, 0.5, 0.45, 0.9]).mean()),
        "brier": pytest.approx((0.15**2 + 0.5**2 + 0.55**2 + 0.1**2) / 4),
    }
    assert np.isfinite(losses(np.array([0.0, 1.0]), np.array([1.0, 0.0]))["log_loss"])

"""`reranker calibrate`: the scores of an export follow the judgments, and bad data changes nothing."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from app.engines.load import load_artefact
from app.engines.models.artefact import Manifest, ScoreCalibration
from app.engines.models.source import EMBEDDED
from tests.commands import reranker
from tests.e2e.process import FIXED
from tests.evaluation.test_command import ROOT, jsonl

pytestmark = pytest.mark.timeout(300)

PAIRS = """
France:Paris Germany:Berlin Spain:Madrid Italy:Rome Austria:Vienna Poland:Warsaw Greece:Athens Norway:Oslo
Sweden:Stockholm Finland:Helsinki Denmark:Copenhagen Ireland:Dublin Portugal:Lisbon Hungary:Budapest
Bulgaria:Sofia Romania:Bucharest Serbia:Belgrade Croatia:Zagreb Egypt:Cairo Kenya:Nairobi Japan:Tokyo
China:Beijing Thailand:Bangkok Vietnam:Hanoi India:Delhi Nepal:Kathmandu Iraq:Baghdad Iran:Tehran Peru:Lima
Chile:Santiago Cuba:Havana Canada:Ottawa Ghana:Accra Ethiopia:Addis Senegal:Dakar Morocco:Rabat Tunisia:Tunis
Libya:Tripoli Angola:Luanda Zambia:Lusaka
"""
CAPITALS = dict(pair.split(":") for pair in PAIRS.split())


def capitals(file: Path, grades: tuple[int, ...] = (1, 1, 0, 0), count: int = len(CAPITALS)) -> Path:
    """Questions with the sentence that answers each, and three others.

    `grades`: what the sentence that answers gets, in turn.
    """
    sentences = [f"{capital} is the capital of {country}." for country, capital in CAPITALS.items()]
    rows: list[dict[str, Any]] = [
        {
            "query": f"What is the capital of {country}?",
            "documents": [sentences[(index + step) % len(sentences)] for step in (7, 0, 13, 21)],
            "qrels": {"1": grades[index % len(grades)], "0": 0},
        }
        for index, country in enumerate(CAPITALS)
    ]
    return jsonl(file, rows[:count])


def export(folder: Path, **changes: Any) -> Path:
    shutil.copytree(EMBEDDED / "openvino-int8", folder)
    Manifest.read(folder).model_copy(update=changes).write(folder)
    return folder


def score(folder: Path) -> float:
    """The score of a sentence that answers the question."""
    engine = load_artefact(folder, None, 1)
    return engine.activate(
        engine.score(engine.encode("What is the capital of France?", ["Paris is the capital of France."]))
    )[0]


def test_scores_become_the_share_of_relevant_documents(tmp_path: Path) -> None:
    """People found half of the sentences relevant that the model is sure of."""
    folder = export(tmp_path / "exported")
    file = capitals(tmp_path / "judged.jsonl")
    assert score(folder) > 0.75
    printed = reranker("calibrate", file, "--model", folder, **FIXED)
    assert printed.exit_code == 0, printed.stderr
    assert score(folder) == pytest.approx(0.5, abs=0.1)
    assert "Stored in" in printed.stdout
    rows = [line.split("│")[1:-1] for line in printed.stdout.splitlines() if line.startswith("│ score >=")]
    assert [row[0].split()[-1] for row in rows] == [f"0.{digit}" for digit in range(1, 10)]
    assert len({len(line) for line in printed.stdout.splitlines() if line.startswith("│")}) == 1
    again = reranker("calibrate", file, "--json", RERANKER_MODEL=str(folder), **FIXED)
    figures = json.loads(again.stdout)
    assert figures["before"] == figures["after"], "the scores before are not those that were stored"
    assert figures["stored"] is False
    assert figures["queries"] == {"fitted": 20, "held_out": 20}
    assert figures["documents"] == {"fitted": 80, "held_out": 80}
    assert figures["after"]["log_loss"] < 0.4


def test_scores_that_were_no_probabilities_become_some(tmp_path: Path) -> None:
    folder = export(tmp_path / "exported", activation="identity")
    file = capitals(tmp_path / "judged.jsonl", (2,))
    assert score(folder) > 1
    found = reranker("calibrate", file, "--model", folder, "--json", **FIXED)
    figures = json.loads(found.stdout)
    assert (figures["before"]["log_loss"], figures["stored"]) == (None, True)
    assert 0.8 < score(folder) < 1


@pytest.mark.parametrize(
    ("grades", "count", "message"),
    [
        ((1,), 19, "9 queries in the second half of the judged queries; calibration needs at least 10 in each half"),
        ((1, 1, 0, 0, 0, 0), 40, "7 relevant documents in the first half of the judged queries; calibration needs"),
    ],
)
def test_too_few_judgments_are_refused(tmp_path: Path, grades: tuple[int, ...], count: int, message: str) -> None:
    folder, file = export(tmp_path / "exported"), capitals(tmp_path / "judged.jsonl", grades, count)
    found = reranker("calibrate", file, "--model", folder)
    assert (found.exit_code, message in " ".join(found.stderr.replace("│", " ").split())) == (2, True), found.stderr
    assert Manifest.read(folder).score_calibration is None


def test_judgments_against_the_model_are_refused(tmp_path: Path) -> None:
    folder = export(tmp_path / "exported", score_calibration=ScoreCalibration(scale=2.0, shift=1.0))
    rows = [json.loads(line) for line in capitals(tmp_path / "judged.jsonl").read_text().splitlines()]
    file = jsonl(tmp_path / "judged.jsonl", [row | {"qrels": [1, 0, 1, 1]} for row in rows])
    found = reranker("calibrate", file, "--model", folder, **FIXED)
    assert (found.exit_code, "relevant documents have lower logits" in found.stderr) == (1, True), found.stderr
    assert Manifest.read(folder).score_calibration == ScoreCalibration(scale=2.0, shift=1.0)


@pytest.mark.parametrize("model", [None, "embedded:multilingual", "some/model"])
def test_a_model_that_is_not_exported_is_refused_with_the_commands_to_run(tmp_path: Path, model: str | None) -> None:
    file = capitals(tmp_path / "judged.jsonl")
    found = reranker("calibrate", file, *(("--model", model) if model else ()))
    assert found.exit_code == 1, found.stderr
    _, export, calibrate = found.stderr.splitlines()
    output = export.split()[-1]
    assert export.split()[:2] == ["cp", "-r"] if model == "embedded:multilingual" else ["reranker", "export"]
    assert calibrate.split() == ["reranker", "calibrate", str(file), "--model", output]
    assert not (ROOT / output).exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_export_that_cannot_be_written_is_refused_before_the_ranking(tmp_path: Path) -> None:
    folder = export(tmp_path / "exported")
    folder.chmod(0o555)
    found = reranker("calibrate", capitals(tmp_path / "judged.jsonl"), "--model", folder)
    assert (found.exit_code, "cannot be written" in found.stderr) == (1, True), found.stderr

"""`reranker evaluate`: reading collections, computing measures, printing reports."""

import asyncio
import gzip
import json
import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from app.evaluation.chart import draw
from app.evaluation.collection import read_collection
from app.evaluation.lines import UnusableCollection
from app.evaluation.measures import interval, measure
from tests.commands import TERMINAL, reranker
from tests.conftest import Serve, free_port

ROOT = Path(__file__).parents[2]
ROWS = [
    {
        "qid": "q1",
        "query": "what causes tides",
        "documents": [{"id": "a", "text": "bread"}, {"id": "b", "text": "the moon causes tides"}],
        "qrels": {"b": 2, "unseen": 1},
    },
    {
        "qid": "q2",
        "query": "moon rock",
        "documents": [{"id": "a", "text": "moon rock"}, {"id": "b", "text": "bread"}, {"id": "c", "text": "bread"}],
        "qrels": {"a": 1},
    },
]


def jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """Write rows to the path; a name that ends with .gz is compressed."""
    text = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def beir(folder: Path, ending: str = "") -> Path:
    """Three documents, two judged queries, and one query without judgments."""
    texts = {"d1": ("Bread", "flour and water"), "d2": ("", "the moon causes tides"), "d3": ("Moon", "a rock")}
    folder.joinpath("qrels").mkdir()
    corpus = [{"_id": name, "title": title, "text": text} for name, (title, text) in texts.items()]
    jsonl(folder / f"corpus.jsonl{ending}", corpus)
    queries = {"1": "what causes tides", "2": "moon rock", "3": "not judged"}
    jsonl(folder / f"queries.jsonl{ending}", [{"_id": name, "text": text} for name, text in queries.items()])
    folder.joinpath("qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n1\td2\t2\n2\td3\t1\n2\td1\t0\n")
    return folder


def evaluate(*arguments: object) -> Result:
    return reranker("evaluate", *arguments)


def test_measures_follow_their_definitions() -> None:
    qrels = {"q": {"x": 3, "y": 1, "unseen": 2, "z": 0}}
    found = measure({"q": ["y", "x", "z", "not judged"]}, qrels, 10)["q"]
    gained, ideal = 1 + 7 / math.log2(3), 7 + 3 / math.log2(3) + 1 / math.log2(4)
    assert found == pytest.approx({"nDCG@10": gained / ideal, "MRR@10": 1, "recall@10": 2 / 3})


def test_measures_ignore_ranks_after_the_cutoff() -> None:
    rankings = {"q": ["n1", "n2", "x"]}
    assert measure(rankings, {"q": {"x": 1}}, 2) == {"q": {"nDCG@2": 0, "MRR@2": 0, "recall@2": 0}}
    assert measure(rankings, {"q": {"x": 1}}, 3)["q"] == pytest.approx({"nDCG@3": 0.5, "MRR@3": 1 / 3, "recall@3": 1})


def test_a_query_without_a_ranking_counts_as_zero() -> None:
    assert measure({}, {"q": {"x": 1}}, 10) == {"q": {"nDCG@10": 0, "MRR@10": 0, "recall@10": 0}}


def test_an_interval_lies_around_its_mean_and_narrows_with_more_queries() -> None:
    few, many = interval([0.0, 1.0] * 10), interval([0.0, 1.0] * 200)
    for found in (few, many):
        assert found.mean == 0.5
        assert found.low is not None
        assert found.high is not None
        assert found.low < 0.5 < found.high
        assert found.high - 0.5 == pytest.approx(1.96 * 0.5 / math.sqrt(20 if found is few else 400), rel=0.15)
    assert interval([0.0, 1.0] * 10) == few, "not the same in every run"


def test_equal_values_have_an_empty_interval_and_a_single_value_has_none() -> None:
    assert interval([0.25] * 5) == (0.25, 0.25, 0.25)
    assert interval([0.25]) == (0.25, None, None)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_jsonl_is_read(tmp_path: Path, name: str) -> None:
    first, second = read_collection(jsonl(tmp_path / name, [ROWS[0], "", ROWS[1]]))
    assert (first.qid, first.query, list(first.documents), first.qrels["b"]) == (
        "q1",
        "what causes tides",
        ["a", "b"],
        2,
    )
    assert second.documents == {"a": "moon rock", "b": "bread", "c": "bread"}


def test_bare_documents_and_lists_of_grades_are_read(tmp_path: Path) -> None:
    rows = [
        {"query": "a", "documents": ["x", {"text": "y"}, {"id": 7, "text": "z"}], "qrels": [0, 2, 1]},
        {"qid": 5, "query": "a", "documents": ["x", "y"], "qrels": {"1": 1}},
    ]
    first, second = read_collection(jsonl(tmp_path / "rows.jsonl", rows))
    assert (first.qid, first.documents, first.qrels) == ("1", {"0": "x", "1": "y", "7": "z"}, {"0": 0, "1": 2, "7": 1})
    assert (second.qid, second.qrels) == ("5", {"1": 1})


def test_only_the_first_queries_and_documents_are_read(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [*ROWS, "this line is not read"])
    assert [list(topic.documents) for topic in read_collection(file, depth=1, queries=2)] == [["a"], ["a"]]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_bm25_finds_the_documents_of_a_beir_folder(tmp_path: Path, ending: str) -> None:
    first, second = read_collection(beir(tmp_path, ending))
    assert (first.qid, first.qrels, next(iter(first.documents))) == ("1", {"d2": 2}, "d2")
    assert list(second.documents) == ["d3", "d2", "d1"]
    assert second.documents["d3"] == "Moon a rock"
    assert list(read_collection(tmp_path, depth=1)[1].documents) == ["d3"]


def test_bm25_reads_all_of_a_large_corpus(tmp_path: Path) -> None:
    folder = beir(tmp_path)
    others = [{"_id": f"o{number}", "text": "bread " * 800} for number in range(1000)]
    jsonl(
        folder / "corpus.jsonl",
        [*others, *({"_id": name, "text": "bread " * 800 + name} for name in ("d1", "d2", "d3"))],
    )
    jsonl(folder / "queries.jsonl", [{"_id": "1", "text": "d2"}, {"_id": "2", "text": "d3"}])
    assert [list(topic.documents) for topic in read_collection(folder, depth=1)] == [["d2"], ["d3"]]


def test_a_run_gives_the_documents_of_a_beir_folder(tmp_path: Path) -> None:
    run = tmp_path / "run.trec"
    run.write_text("1 Q0 d1 2 0.5 mine\n1 Q0 d3 1 9 mine\n1 Q0 d2 3 0.1 mine\n")
    first, second = read_collection(beir(tmp_path), run)
    assert (list(first.documents), list(second.documents)) == (["d3", "d1", "d2"], [])
    assert list(read_collection(tmp_path, run, depth=2)[0].documents) == ["d3", "d1"]


GOOD = json.dumps(ROWS[0])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Invalid JSON"),
        ("7", "line 2: Input should be an object"),
        ({"query": "a", "documents": ["x"]}, "line 2: qrels: Field required"),
        ({"query": "", "documents": ["x"], "qrels": {}}, "line 2: query: "),
        ({"query": "a", "documents": [], "qrels": {}}, "line 2: documents: "),
        ({"query": "a", "documents": ["x", 5], "qrels": {}}, "line 2: documents.1.text: "),
        ({"query": "a", "documents": [{"id": "x"}], "qrels": {}}, "line 2: documents.0.text: Field required"),
        (
            {"query": "a", "documents": ["x", {"id": "0", "text": "y"}], "qrels": {}},
            "documents: Value error, the id '0' is",
        ),
        ({"query": "a", "documents": ["x"], "qrels": [1, 0]}, "line 2: qrels: Value error, 2 grades for 1 documents"),
        ({"query": "a", "documents": ["x"], "qrels": {"0": 16}}, "line 2: qrels.0: "),
        ({"query": "a", "documents": ["x"], "qrels": {"0": 0.5}}, "line 2: qrels.0: "),
        ({"qid": "q1", "query": "a", "documents": ["x"], "qrels": {}}, "line 2: qid: 'q1' is used twice"),
    ],
)
def test_an_invalid_line_is_reported_with_its_field(tmp_path: Path, line: Any, message: str) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [GOOD, line])
    found = evaluate(file, "--url", "http://127.0.0.1:9")
    assert (found.exit_code, "rows.jsonl: " in found.stderr, message in found.stderr) == (2, True, True), found.stderr


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", '{"text": "x"}', "corpus.jsonl: line 1: _id: Field required"),
        ("queries.jsonl", '{"_id": "1", "text": "a"}', "test.tsv: query-id: '2' is not in queries.jsonl"),
        ("qrels/test.tsv", "1\td1\n", "test.tsv: line 1: expected 3 columns (query-id, corpus-id, score), found 2"),
        ("qrels/test.tsv", "1\td1\t1\n1\td1\tx\n", "test.tsv: line 2: score: 'x' is not a whole number"),
        ("qrels/test.tsv", "1\td1\t99\n", "test.tsv: line 1: score: 99 is more than 15"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "contains no queries"),
        ("run.trec", "1 Q0 d9 1 9 mine", "run.trec: line 1: docid: 'd9' is not in the corpus"),
        ("run.trec", "1 Q0 d1 1 high mine", "run.trec: line 1: score: 'high' is not a number"),
    ],
)
def test_an_invalid_file_of_a_folder_is_reported(tmp_path: Path, file: str, content: str, message: str) -> None:
    beir(tmp_path).joinpath(file).write_text(content)
    run = tmp_path / "run.trec"
    with pytest.raises(UnusableCollection) as refused:
        read_collection(tmp_path, run if run.exists() else None)
    assert message in str(refused.value)


def test_unusable_files_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl.gz").write_bytes(b"not gzip")
    (tmp_path / "latin.jsonl").write_bytes('{"query": "é"}'.encode("latin-1"))
    jsonl(tmp_path / "empty.jsonl", [])
    jsonl(tmp_path / "nothing.jsonl", [{"query": "a", "documents": ["x"], "qrels": {"0": 0}}])
    jsonl(tmp_path / "others.jsonl", [{"query": "a", "documents": [{"id": "d1", "text": "x"}], "qrels": {"1": 1}}])
    wrong = {
        "broken.jsonl.gz": "cannot be read",
        "latin.jsonl": "not valid UTF-8",
        "empty.jsonl": "contains no queries",
        "nothing.jsonl": "no query has a relevant document",
        "others.jsonl": "none of the judged document ids appear among the candidates",
        "missing.jsonl": "does not exist",
        "": "queries.jsonl",
    }
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels/test.tsv").write_text("1\td\t1\n")
    for name, message in wrong.items():
        found = evaluate(tmp_path / name, "--url", "http://127.0.0.1:9")
        assert (found.exit_code, message in found.stderr) == (2, True), found.stderr
    found = evaluate(tmp_path / "nothing.jsonl", "--run", tmp_path / "latin.jsonl", "--url", "http://127.0.0.1:9")
    assert (found.exit_code, "needs a BEIR folder" in found.stderr) == (2, True), found.stderr


def test_contradicting_options_are_rejected(tmp_path: Path) -> None:
    found = evaluate(jsonl(tmp_path / "rows.jsonl", ROWS), "--url", "http://127.0.0.1:9", "--precision", "fp32")
    assert (found.exit_code, "has its own model" in found.stderr) == (2, True), found.stderr


def test_an_unreachable_service_is_reported_in_one_line(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    found = evaluate(jsonl(tmp_path / "rows.jsonl", ROWS), "--url", url)
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr.startswith(f"No response from {url}")
    assert found.stderr.count("\n") == 1


async def test_a_running_service_is_measured(serve: Serve, tmp_path: Path) -> None:
    unjudged = {"qid": "q3", "query": "bread", "documents": ["bread"], "qrels": {}}
    file = jsonl(tmp_path / "rows.jsonl", [*ROWS, unjudged])
    async with serve(api_keys="k") as http:
        options = (file, "--url", http.base_url, "--api-key", "k")
        found = await asyncio.to_thread(evaluate, *options, "--json")
        again = await asyncio.to_thread(evaluate, *options)
        refused = await asyncio.to_thread(evaluate, file, "--url", http.base_url, "--api-key", "wrong")
    assert found.exit_code == 0, found.stderr
    figures = json.loads(found.stdout)
    ideal = 3 + 1 / math.log2(3)
    before, after = 3 / math.log2(3) / ideal, 3 / ideal
    ndcg = {moment: change["mean"] for moment, change in figures["measures"]["nDCG@10"].items()}
    assert ndcg == pytest.approx(
        {"before": (before + 1) / 2, "after": (after + 1) / 2, "difference": (after - before) / 2}
    )
    assert figures["measures"]["MRR@10"]["before"]["mean"] == 0.75
    assert figures["measures"]["MRR@10"]["after"] == {"mean": 1, "low": 1, "high": 1}
    assert figures["measures"]["recall@10"]["difference"] == {"mean": 0, "low": 0, "high": 0}
    assert [row["qid"] for row in figures["per_query"]] == ["q1", "q2"]
    assert figures["per_query"][0]["after"] == pytest.approx({"nDCG@10": after, "MRR@10": 1, "recall@10": 0.5})
    assert (figures["queries"], figures["documents"], figures["left_out"]) == (2, 5, 1)
    # The fifth document has the text of the fourth.
    assert (figures["engine"]["model_id"], figures["scored"] + figures["cached"]) == ("fake", 5)
    assert 0 < figures["p50_ms"] <= figures["p95_ms"]
    assert figures["documents_per_second"] > 0
    assert again.exit_code == 0, again.stderr
    assert "Scores from the service's cache or from an equal document: 5." in again.stdout
    assert "Queries without a relevant document, left out: 1" in again.stdout
    rows = [line for line in again.stdout.splitlines() if line.startswith("│")]
    assert [row.split()[1] for row in rows if "@10" in row] == ["nDCG@10", "MRR@10", "recall@10"]
    assert len({len(row) for row in rows}) == 1
    assert (refused.exit_code, "API key" in refused.stderr) == (1, True)


async def test_a_chart_is_drawn(serve: Serve, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", ROWS)
    async with serve() as http:
        for name in ("chart.svg", "chart.png"):
            found = await asyncio.to_thread(evaluate, file, "--url", http.base_url, "--plot", tmp_path / name)
            assert found.exit_code == 0, found.stderr
        alone = await asyncio.to_thread(
            evaluate, file, "--url", http.base_url, "--queries", 1, "--plot", tmp_path / "one.pdf"
        )
    drawing = (tmp_path / "chart.svg").read_text()
    for words in (
        "fake, fake fp32 on cpu: 2 queries",
        "0.7500",
        "nDCG@10 per query: 1 better, 0 worse",
    ):
        assert words in drawing
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert alone.exit_code == 0, alone.stderr
    assert (tmp_path / "one.pdf").read_bytes().startswith(b"%PDF")


def test_a_chart_is_drawn_for_queries_with_equal_values(tmp_path: Path) -> None:
    found = {"mean": 0.3, "low": math.nextafter(0.3, 1), "high": math.nextafter(0.3, 0)}
    row = {when: {"nDCG@10": 0.3} for when in ("before", "after")}
    engine = {"model_id": "fake", "backend": "fake", "precision": "fp32", "device": "cpu"}
    measures = {"nDCG@10": {"before": found, "after": found}}
    draw(
        {"engine": engine, "queries": 3, "documents": 6, "measures": measures, "per_query": [row] * 3},
        tmp_path / "chart.svg",
    )
    assert "0.3000" in (tmp_path / "chart.svg").read_text()


def test_an_unusable_plot_file_is_rejected_before_ranking(tmp_path: Path) -> None:
    file, url = jsonl(tmp_path / "rows.jsonl", ROWS), "http://127.0.0.1:9"
    for name, message in {"chart.doc": "must end with one of .png, .svg, .pdf", "none/chart.png": "be written"}.items():
        found = evaluate(file, "--url", url, "--plot", tmp_path / name)
        assert (found.exit_code, message in found.stderr) == (2, True), found.stderr


async def test_a_rejected_query_is_named(serve: Serve, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", ROWS)
    async with serve(max_documents=2) as http:
        found = await asyncio.to_thread(evaluate, file, "--url", http.base_url)
        assert (found.exit_code, "Query 'q2': documents: at most 2" in found.stderr) == (1, True), found.stderr
        assert (await asyncio.to_thread(evaluate, file, "--url", http.base_url, "--depth", 2)).exit_code == 0


async def test_queries_without_documents_count_as_zero(serve: Serve, tmp_path: Path) -> None:
    run = tmp_path / "run.trec"
    run.write_text("1 Q0 d1 1 9 mine\n1 Q0 d2 2 8 mine\n")
    async with serve() as http:
        options = (beir(tmp_path), "--run", run, "--url", http.base_url, "--json", "-k", 1)
        figures = json.loads((await asyncio.to_thread(evaluate, *options)).stdout)
    means = {moment: change["mean"] for moment, change in figures["measures"]["nDCG@1"].items()}
    assert means == {"before": 0, "after": 0.5, "difference": 0.5}
    assert figures["per_query"][1]["ms"] is None


def test_without_a_url_a_service_with_the_settings_of_the_environment_is_measured(tmp_path: Path) -> None:
    question = "Which planet has the most moons?"
    documents = ["Mars has two small moons.", "Saturn has 146 confirmed moons, more than any other planet.", "Bread."]
    row = {"query": question, "documents": documents, "qrels": [0, 1, 0]}
    file = jsonl(tmp_path / "rows.jsonl", [row, row | {"qid": "again"}])
    settings = {"RERANKER_API_KEYS": "secret", "RERANKER_KEY_REQUESTS_PER_MINUTE": "1", "RERANKER_KEY_BURST": "1"}
    found = subprocess.run(  # as from a shell
        [sys.executable, "-c", "from app.cli import cli; cli()", "evaluate", str(file), "--json"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=ROOT,
        env=TERMINAL | settings,
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    figures = json.loads(found.stdout)
    assert figures["measures"]["nDCG@10"]["before"]["mean"] == pytest.approx(1 / math.log2(3))
    assert figures["measures"]["nDCG@10"]["after"]["mean"] == 1
    assert (figures["engine"]["model_id"], figures["engine"]["backend"]) == ("reranker-minilm-l6-v2", "openvino")
    assert (figures["scored"], figures["cached"]) == (6, 0), "measured scores must not come from a cache"


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("--precision", "int3"), {}, "precision='int3' is not valid"),
        ((), {"RERANKER_BACKEND": "abacus"}, "RERANKER_BACKEND='abacus' is not valid"),
        (("--model", "/no/such/model"), {"RERANKER_MODEL": "/another"}, "/no/such/model"),
    ],
)
def test_options_and_settings_configure_the_measured_service(
    tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    found = reranker("evaluate", jsonl(tmp_path / "rows.jsonl", ROWS), *arguments, **environment)
    assert (found.exit_code, message in found.stderr, found.stdout) == (1, True, ""), found.stderr
    assert "Traceback" not in found.stderr


def test_a_missing_extra_is_reported_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "app.evaluation.measures")
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    found = evaluate(jsonl(tmp_path / "rows.jsonl", ROWS), "--url", "http://127.0.0.1:9")
    assert (found.exit_code, "pip install '.[eval]'" in found.stderr) == (1, True), found.stderr
    assert found.stderr.count("\n") == 1

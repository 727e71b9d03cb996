"""The page of `reranker evaluate --html`."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from app.evaluation.page import gain_bins
from tests.conftest import Serve
from tests.evaluation.test_command import ROWS, beir, evaluate, jsonl
from tests.pages.reader import Element, check_self_contained, read

HOSTILE = "</style><script>alert(1)</script>\"'>&amp;"


async def written(serve: Serve, tmp_path: Path, rows: Iterable[Any], *options: object) -> tuple[Element, str]:
    """The page for these rows, and what the command prints."""
    html = tmp_path / "report.html"
    async with serve() as http:
        file = jsonl(tmp_path / "rows.jsonl", rows)
        found = await asyncio.to_thread(evaluate, file, "--url", http.base_url, "--html", html, *options)
    assert found.exit_code == 0, found.stderr
    document = html.read_text()
    check_self_contained(document)
    return read(document), found.stdout


def facts(page: Element) -> dict[str, str]:
    return dict(zip((each.text for each in page.all("dt")), (each.text for each in page.all("dd")), strict=True))


def passages(article: Element) -> list[list[str]]:
    """The words of each passage, before and after reranking."""
    return [[item.all("p")[0].text for item in order.all("li")] for order in article.all("ol")]


async def test_the_page_has_the_printed_figures_and_where_they_come_from(serve: Serve, tmp_path: Path) -> None:
    page, printed = await written(serve, tmp_path, ROWS)
    known = facts(page)
    assert (known["model"], known["engine"], known["precision"]) == ("fake", "fake on cpu", "fp32")
    assert (known["queries"], known["documents"]) == ("2", "5")
    assert known["data"] == str(tmp_path / "rows.jsonl")
    assert known["date"].endswith(" UTC")
    rows = [
        [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")]
        for line in printed.splitlines()
        if line.startswith(("│", "┃"))
    ]
    assert len(rows) == 10
    assert page.all("table")[0].rows() == rows
    assert "nDCG@10, before: 0.7606; nDCG@10, after: 0.9131;" in page.all("svg")[0].attributes["aria-label"]


async def test_the_histogram_counts_gains_and_losses(serve: Serve, tmp_path: Path) -> None:
    page, _ = await written(serve, tmp_path, ROWS)
    label = page.all("svg")[1].attributes["aria-label"]
    assert label.startswith("nDCG@10 per query: 1 better, 0 worse, 1 unchanged. unchanged: 1; ")
    assert sum(int(part.rsplit(": ")[-1]) for part in label.split(". ", 1)[1].split("; ")) == 2


async def test_a_query_that_gained_is_shown_with_both_orders(serve: Serve, tmp_path: Path) -> None:
    page, _ = await written(serve, tmp_path, ROWS)
    [article] = page.all("article")
    assert article.all("h3")[0].text == "what causes tides"
    assert "query id q1" in article.text
    assert "relevant documents at rank 2 before, 1 after" in article.text
    assert "1 relevant not among the 2 candidates" in article.text
    assert passages(article) == [["bread", "the moon causes tides"], ["the moon causes tides", "bread"]]
    best = article.all("ol")[1].all("li")[0]
    assert (best.attributes["class"], "grade 2" in best.text, "rank 2 before" in best.text) == ("relevant", True, True)
    assert "not judged" in article.all("ol")[1].all("li")[1].text
    assert "No query lost." in page.text


async def test_a_query_that_lost_is_shown(serve: Serve, tmp_path: Path) -> None:
    row = {"query": "moon", "documents": ["tides", "the moon"], "qrels": [1, 0]}
    page, _ = await written(serve, tmp_path, [row])
    [article] = page.all("article")
    assert article.attributes["id"] == "lost-1"
    assert passages(article) == [["tides", "the moon"], ["the moon", "tides"]]
    assert "No query gained." in page.text


async def test_the_ten_largest_gains_are_shown_with_five_passages_each(serve: Serve, tmp_path: Path) -> None:
    """In query number n the relevant document comes after n others."""
    rows = [
        {"qid": f"q{n}", "query": "moon", "documents": ["bread"] * n + ["moon"], "qrels": {str(n): 1}}
        for n in range(1, 10)
    ]
    rows += [row | {"qid": f"{row['qid']} again"} for row in rows[:3]]
    page, _ = await written(serve, tmp_path, rows)
    articles = page.all("article")
    assert [article.all("p", "quiet")[0].text.split(";")[0] for article in articles] == [
        *(f"query id q{n}" for n in range(9, 2, -1)),
        "query id q3 again",
        "query id q2",
        "query id q2 again",
    ]
    assert len(page.all("table")[1].rows()) == 11
    assert [len(order) for order in passages(articles[0])] == [5, 5]
    assert [len(order) for order in passages(articles[-1])] == [3, 3]


async def test_texts_of_the_data_are_never_markup(serve: Serve, tmp_path: Path) -> None:
    row = {
        "qid": f"q{HOSTILE}",
        "query": f"moon {HOSTILE}",
        "documents": [{"id": "a", "text": "bread"}, {"id": HOSTILE, "text": f"moon {HOSTILE}\x00\x1b[31m"}],
        "qrels": {HOSTILE: 1},
    }
    page, _ = await written(serve, tmp_path, [row])
    [article] = page.all("article")
    assert article.all("h3")[0].text == f"moon {HOSTILE}"
    assert passages(article)[1] == [f"moon {HOSTILE}\ufffd\ufffd[31m", "bread"]
    assert f"query id q{HOSTILE}" in article.text
    assert HOSTILE in article.all("ol")[1].all("li")[0].all("div")[0].text


async def test_text_from_right_to_left_does_not_turn_the_words_around_it(serve: Serve, tmp_path: Path) -> None:
    row = {
        "qid": "\u202eq",
        "query": "\u202emoon",
        "documents": [{"id": "a", "text": "bread"}, {"id": "\u202eb", "text": "\u202e moon \u202emoon"}],
        "qrels": {"\u202eb": 1},
    }
    page, _ = await written(serve, tmp_path, [row])
    holders = [
        each for each in page.inside if "\u202e" in each.text and not any("\u202e" in e.text for e in each.inside)
    ]
    assert len(holders) == 7
    assert [each.name for each in holders if each.attributes.get("dir") != "auto" and each.name != "bdi"] == []


async def test_long_texts_are_cut(serve: Serve, tmp_path: Path) -> None:
    row = {
        "qid": "i" * 500,
        "query": "moon " * 200,
        "documents": ["x" * 5000, "moon " * 1000],
        "qrels": [0, 1],
    }
    page, _ = await written(serve, tmp_path, [row])
    [article] = page.all("article")
    assert passages(article)[0][0] == "x" * 299 + "…"
    assert len(article.all("h3")[0].text) <= 300
    assert len(article.text) < 2000


async def test_the_fusion_is_on_the_page(serve: Serve, tmp_path: Path) -> None:
    page, printed = await written(serve, tmp_path, ROWS, "--fusion")
    assert "Best on all queries: RERANKER_FUSION=" in printed
    assert next(line for line in printed.splitlines() if line.startswith("Best on")) in page.text
    assert page.all("table")[1].rows()[1][0] == "nothing (the model alone)"


async def test_the_page_names_the_search_of_a_folder(serve: Serve, tmp_path: Path) -> None:
    """With the run, the second query has no documents."""
    run, html = tmp_path / "mine.trec", tmp_path / "report.html"
    run.write_text("1 Q0 d1 1 9 mine\n1 Q0 d2 2 8 mine\n")
    folder = beir(tmp_path)
    async with serve() as http:
        for options, order in {("--run", run): "mine.trec", (): "BM25"}.items():
            found = await asyncio.to_thread(evaluate, folder, "--url", http.base_url, "--html", html, *options)
            assert found.exit_code == 0, found.stderr
            assert facts(read(html.read_text()))["order before"] == order


def test_an_unwritable_page_is_rejected_before_ranking(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", ROWS)
    found = evaluate(file, "--url", "http://127.0.0.1:9", "--html", tmp_path / "none/report.html")
    assert (found.exit_code, "--html" in found.stderr, "cannot be written" in found.stderr) == (2, True, True)


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([0.0, 1e-12, -1e-12], {"unchanged": 3}),
        ([0.1, 0.05, -0.01], {"+0.04 to +0.05": 1, "+0.09 to +0.1": 1, "0 to -0.01": 1}),
        ([1.0, -1.0, 0.95], {"+0.9 to +1": 2, "-0.9 to -1": 1}),
        ([], {}),
    ],
)
def test_bins_are_as_wide_as_the_largest_gain_needs(gains: list[float], expected: dict[str, int]) -> None:
    assert {each.shown: each.queries for each in gain_bins(gains) if each.queries} == expected

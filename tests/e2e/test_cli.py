"""The command `reranker`, run as a user runs it, against a live service."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import __version__
from tests.conftest import free_port
from tests.e2e.process import FIXED, MOONS, ROOT, service

pytestmark = [pytest.mark.e2e]
RERANKER = Path(sys.executable).with_name("reranker")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with service(**FIXED) as (url, _):
        yield url


def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RERANKER, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env={"COLUMNS": "200", "TERM": "dumb", **environment},
    )


def test_lines_are_ranked(url: str, tmp_path: Path) -> None:
    file = tmp_path / "passages.txt"
    file.write_text("\n\n".join(MOONS["documents"]))
    found = run("rerank", "--query", str(MOONS["query"]), "-k", "2", "--prefilter", "hybrid", "--url", url, str(file))
    assert found.returncode == 0, found.stderr
    rows = [line.split() for line in found.stdout.splitlines() if line.startswith("│")]
    assert [row[1] for row in rows] == ["1", "2"]
    assert (rows[0][5], rows[0][8]) == ("5", "Saturn")  # the line number counts empty lines


def test_a_budget_is_passed_on(url: str, tmp_path: Path) -> None:
    file = tmp_path / "passages.txt"
    file.write_text("\n".join(f"{number} moons of a planet" for number in range(50)))
    found = run("rerank", "--query", str(MOONS["query"]), "--budget-ms", "1", "--json", "--url", url, str(file))
    assert found.returncode == 0, found.stderr
    budget = json.loads(found.stdout)["meta"]["budget"]
    assert (budget["budget_ms"], budget["of"]) == (1, 50)
    assert 1 <= budget["read"] < 50


def test_brackets_and_quotes_are_text(url: str) -> None:
    lines = ['"Mars," he said, "has two moons."', "the path [/usr/bin] is here", "see [1] and [a] moons [i]"]
    found = run("rerank", "-q", "moons of Mars", "--url", url, "-", stdin="\n".join(lines))
    assert found.returncode == 0, found.stderr
    assert all(line in found.stdout for line in lines)


def test_json_lines_in_and_json_out(url: str) -> None:
    lines = "\n".join(json.dumps({"text": text, "id": f"p{index}"}) for index, text in enumerate(MOONS["documents"]))
    found = run("rerank", "-q", str(MOONS["query"]), "--json", "-", stdin=lines, RERANKER_URL=url)
    assert found.returncode == 0, found.stderr
    ranking = json.loads(found.stdout)
    assert ranking["results"][0]["id"] == "p2"
    assert len(ranking["results"]) == len(MOONS["documents"])


def test_info(url: str) -> None:
    assert "reranker-minilm-l6" in run("info", "--url", url).stdout
    assert json.loads(run("info", "--url", url, "--json").stdout)["model_type"]["reranker"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "status", "message"),
    [
        (("rerank", "-q", "a", "-"), "b", 1, "No response from http://127.0.0.1"),
        (("rerank", "-q", "a", "-"), "\n\n", 2, "no documents"),
        (("rerank", "-q", "a", "-"), '{"text"', 2, "line 1: invalid JSON"),
        (("rerank", "-q", "a", "no-such-file"), "", 2, "no-such-file"),
        (("rerank", "-"), "b", 2, "--query"),
        (("serve", "--check"), "", 1, "RERANKER_PORT"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], stdin: str, status: int, message: str) -> None:
    settings = {"RERANKER_URL": f"http://127.0.0.1:{free_port()}", "RERANKER_PORT": "none"}
    found = run(*arguments, stdin=stdin, **settings)
    assert (found.returncode, message in found.stderr) == (status, True), found.stderr
    assert "Traceback" not in found.stderr


def test_a_file_that_is_not_utf_8_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "latin"
    file.write_bytes("Montréal".encode("latin-1"))
    found = run("rerank", "-q", "a", str(file))
    assert (found.returncode, "not valid UTF-8" in found.stderr) == (2, True), found.stderr


def test_version_and_check() -> None:
    assert run("--version").stdout.strip() == __version__
    found = run("serve", "--check", RERANKER_PRTO="1")
    assert (found.returncode, "RERANKER_PRTO is not a setting" in found.stderr) == (0, True), found.stderr


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "app.cli", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == __version__


def test_the_module_starts_no_service_for_the_arguments_of_a_command() -> None:
    arguments = [sys.executable, "-m", "app", "evaluate", "judged.jsonl"]
    found = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert (found.returncode, "only --check, not 'evaluate judged.jsonl'" in found.stderr) == (
        2,
        True,
    )


@pytest.mark.parametrize("command", ["", "serve", "export", "evaluate", "info", "rerank"])
def test_help_has_examples(command: str) -> None:
    found = run(*command.split(), "--help")
    assert found.returncode == 0
    assert "Example" in found.stdout or not command

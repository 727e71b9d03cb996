"""The page in a real browser, against real services: the embedded model on the loopback."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, Playwright, Route, expect, sync_playwright

from tests.conftest import free_port
from tests.e2e.process import FIXED, MOONS, ROOT, start, wait_until_ready

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
# The machine may be busy.
expect.set_options(timeout=20_000)
PHONE = {"width": 390, "height": 844}
KEY = "a-secret-key"
# Its window is short, so its order differs. One request at a time, and none waits.
STRICT = {
    "RERANKER_API_KEYS": KEY,
    "RERANKER_PROTECT_METRICS": "true",
    "RERANKER_CORS_ORIGINS": "*",
    "RERANKER_MAX_PARALLEL": 1,
    "RERANKER_MAX_QUEUE": 0,
    "RERANKER_MAX_LENGTH": 24,
    "RERANKER_MAX_DOCUMENTS": 10_000,
    "RERANKER_ROOT_PATH": "/strict",
}

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def urls() -> Iterator[tuple[str, str]]:
    """A service with the default settings, and a strict one."""
    ports = [free_port(), free_port()]
    common = FIXED | {"RERANKER_LOG_LEVEL": "error"}  # no one reads the logs
    processes = [start(port, **settings, **common) for port, settings in zip(ports, ({}, STRICT), strict=True)]
    try:
        for port, process in zip(ports, processes, strict=True):
            wait_until_ready(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}/strict"
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with _playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@contextmanager
def _playwright() -> Iterator[Playwright]:
    """Playwright runs an event loop in this thread, and other tests in the process must not find it."""
    with sync_playwright() as playwright:
        yield playwright
    asyncio.set_event_loop(None)


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, urls: tuple[str, str]) -> Iterator[Open]:
    """Opens the page of the first service. Requests may go only to its origin, or to those in `allowed`."""
    origin, requested, errors = urls[0], set[str](), list[str]()
    allowed_origins = set[str]()
    contexts = []

    def open_page(path: str = "", url: str = origin, allowed: Sequence[str] = (), **context: Any) -> Page:
        allowed_origins.update(_origin(each) for each in (url, *allowed))
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | context))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("request", lambda request: requested.add(_origin(request.url)))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{url}/{path}")
        expect(page.locator("#state")).to_have_class("state good")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert requested <= allowed_origins
    assert errors == []


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def ask(page: Page, query: str, passages: str) -> None:
    page.get_by_label("Question", exact=True).fill(query)
    page.get_by_label("Passages", exact=True).fill(passages)


def rank(page: Page) -> None:
    page.get_by_role("button", name="Rank", exact=True).click()


def order(page: Page) -> list[int]:
    """The ranked list, by positions in the request."""
    page.locator("ol.results li").first.wait_for()
    return [int(str(item.get_attribute("data-index"))) for item in page.locator("ol.results > li").all()]


def drop(page: Page, name: str, text: str) -> None:
    data = page.evaluate_handle(
        "([name, text]) => { const data = new DataTransfer(); data.items.add(new File([text], name)); return data; }",
        [name, text],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": data})


def answer(url: str, **body: Any) -> dict[str, Any]:
    response = httpx.post(f"{url}/rerank/query", json=body, headers={"X-API-Key": KEY}, timeout=30)
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_an_example_gives_a_ranked_list(open_page: Open) -> None:
    page = open_page()
    expect(page.get_by_role("heading", name="The ranking appears here")).to_be_visible()
    page.get_by_role("button", name="A question").click()
    expect(page.locator("ol.results > li")).to_have_count(9)
    assert order(page)[0] == 6
    first = page.locator("ol.results > li").first
    expect(first.locator(".move")).to_contain_text("up 6 places from 7")
    assert float(str(first.locator(".number").text_content()).removeprefix("Score ")) > 0.5
    for stage in ("Queue", "Tokenize", "Inference"):
        expect(page.locator(".legend")).to_contain_text(stage)
    rank(page)
    expect(page.get_by_text("9 cached")).to_be_visible()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "\n".join(json.dumps({"id": f"d{i}", "text": text}) for i, text in enumerate(MOONS["documents"]))),
        (
            "b.csv",
            "\ufeffid,title,text\r\n" + "".join(f'd{i},moon,"{t}"\r\n' for i, t in enumerate(MOONS["documents"])),
        ),
        ("c.csv", "text;id\n" + "".join(f'"{t}";d{i}\n' for i, t in enumerate(MOONS["documents"]))),
        ("d.json", json.dumps([{"id": f"d{i}", "content": text} for i, text in enumerate(MOONS["documents"])])),
    ],
)
def test_dropped_files_are_read(open_page: Open, name: str, text: str) -> None:
    page = open_page()
    page.get_by_label("Question", exact=True).fill(str(MOONS["query"]))
    drop(page, name, text)
    expect(page.locator("#count")).to_contain_text("5 passages")
    rank(page)
    assert order(page)[0] == 2
    expect(page.locator("ol.results > li").first.locator(".tag")).to_have_text("d2")


def test_a_table_may_have_quotes_and_line_breaks(open_page: Open) -> None:
    page = open_page()
    drop(page, "a.csv", 'name,note\n1,"He said ""moon"",\nand left"\n2,"A longer note, with a comma"\n')
    page.get_by_label("Question", exact=True).fill("moon")
    rank(page)
    assert order(page)[0] == 0
    expect(page.locator("ol.results > li").first).to_contain_text('He said "moon", and left')


def test_a_pasted_request_fills_the_form(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("Passages", exact=True).focus()
    page.evaluate(
        "(text) => { const box = document.activeElement; box.value = text;"
        " box.dispatchEvent(new ClipboardEvent('paste', {bubbles: true})); }",
        json.dumps(MOONS),
    )
    expect(page.get_by_label("Question", exact=True)).to_have_value(str(MOONS["query"]))
    rank(page)
    assert order(page)[0] == 2


@pytest.mark.parametrize(
    ("query", "passages", "message"),
    [
        ("", "a", "Enter a question."),
        ("q", "", "Enter at least one passage"),
        ("q", '[{"text": "a"},]', "The passages look like JSON, but they are not"),
        ("q", '{"text": "a"}\n{"text": b}', "they are not: line 2"),
        ("q", '["a", ["b"]]', "Passage 2 is neither a text nor an object"),
        ("q", '[{"title": "a"}]', "documents[0]"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_in_words(
    open_page: Open, query: str, passages: str, message: str
) -> None:
    page = open_page()
    ask(page, query, passages)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert")).to_contain_text(message)


def test_options_are_sent_and_their_effect_is_marked(open_page: Open) -> None:
    page = open_page()
    ask(page, str(MOONS["query"]), "\n".join(MOONS["documents"]))
    page.locator("#options summary").click()
    page.get_by_label("First stage").select_option("lexical")
    page.get_by_label("Passages it keeps").fill("2")
    page.get_by_label("Raw scores").check()
    page.get_by_label("Results to return").fill("3")
    page.keyboard.press("Control+Enter")
    assert len(order(page)) == 3
    expect(page.get_by_text("3 left out by the first stage")).to_be_visible()
    expect(page.locator("ol.results > li").last).to_contain_text("not read")
    expect(page.get_by_text("2 passages not returned")).to_be_visible()
    assert page.get_by_label("Instruction").is_hidden()  # this model takes none
    page.get_by_label("Results to return").fill("-1")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert")).to_contain_text("-1 is not a whole number above 0")


def test_the_best_window_of_a_long_document_is_marked(open_page: Open, urls: tuple[str, str]) -> None:
    filler = "The quay 🚢 was quiet, and nobody spoke about anything in particular that day. "
    text = filler * 20 + "Saturn has 146 confirmed moons, more than any other planet. " + filler * 20
    page = open_page()
    ask(page, str(MOONS["query"]), f"A market.\n{text}")
    page.locator("#options summary").click()
    page.locator("#long-documents").select_option("chunk_max")
    page.get_by_label("Tokens per window").fill("80")
    page.keyboard.press("Control+Enter")
    options = {"long_documents": "chunk_max", "max_tokens_per_doc": 80}
    best = answer(urls[0], query=MOONS["query"], documents=["A market.", text.strip()], **options)["results"][0]
    assert (best["index"], order(page)[0]) == (1, 1)
    marked = page.locator("ol.results mark").first
    assert marked.text_content() == text[best["window"]["start"] : best["window"]["end"]]
    assert "146" in str(marked.text_content())
    page.get_by_role("button", name="Show all").first.click()
    expect(page.locator("ol.results > li").first).to_contain_text(text[-60:].strip())


def test_the_best_passages_of_a_document_are_marked(open_page: Open) -> None:
    answer = "Saturn has 146 confirmed moons, more than any other planet."
    page = open_page()
    ask(page, str(MOONS["query"]), f"A market 🚢 sells bread. {answer} Nobody was there.")
    page.locator("#options summary").click()
    page.get_by_label("Best passages to mark").fill("1")
    rank(page)
    mark = page.locator("ol.results mark")
    expect(mark).to_have_count(1)
    expect(mark).to_contain_text("146 confirmed moons")
    expect(page.get_by_text("Best passages, scores: 0.")).to_be_visible()
    expect(page.locator("ol.results .text")).to_contain_text("🚢 sells bread.")


@contextmanager
def occupied(url: str) -> Iterator[None]:
    """In the block, a request takes the only slot of the strict service. At the end its client disconnects."""
    documents = [f"{number} moons and planets in the sky over a quiet harbour by night" for number in range(10_000)]
    parts = urlsplit(url)
    connection = HTTPConnection(str(parts.hostname), parts.port, timeout=30)
    body = json.dumps({"query": "moons", "documents": documents})
    connection.request(
        "POST", f"{parts.path}/rerank/query", body, {"X-API-Key": KEY, "Content-Type": "application/json"}
    )

    def active() -> int:
        return int(httpx.get(f"{url}/health").json()["active"])

    try:
        while not active():
            pass
        yield
    finally:
        connection.close()
        while active():
            pass


def enter_key(page: Page) -> None:
    page.get_by_label("Key", exact=True).fill(KEY)
    page.get_by_role("button", name="Use key").click()


def test_a_service_with_keys_asks_for_one_and_keeps_it_in_memory(open_page: Open, urls: tuple[str, str]) -> None:
    page = open_page(url=urls[1])
    page.get_by_role("button", name="A question").click()
    expect(page.get_by_role("alert")).to_contain_text("An API key is needed")
    page.get_by_role("button", name="Enter a key").click()
    enter_key(page)
    rank(page)
    assert len(order(page)) == 9
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#toast")).to_be_visible()
    kept = page.evaluate(
        "() => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
    )
    assert KEY not in kept
    page.reload()
    rank(page)
    expect(page.get_by_role("alert")).to_contain_text("An API key is needed")


def test_a_full_queue_is_said_in_words(open_page: Open, urls: tuple[str, str]) -> None:
    page = open_page(url=urls[1])
    page.locator("#key-open").click()
    enter_key(page)
    with occupied(urls[1]):
        page.get_by_role("button", name="Support articles").click()
        expect(page.get_by_role("alert")).to_contain_text("Queue is full")
        expect(page.get_by_role("alert")).to_contain_text("Try again in")
    rank(page)
    assert len(order(page)) == 9


def test_a_lost_connection_is_said_in_words(open_page: Open) -> None:
    page = open_page()
    page.route("**/rerank/query", lambda route: route.abort())
    page.get_by_role("button", name="A question").click()
    expect(page.get_by_role("alert")).to_contain_text("The service cannot be reached.")


def compare(page: Page, url: str, key: str = "") -> None:
    page.locator("#options summary").click()
    page.get_by_label("Compare with another service").check()
    page.get_by_label("Its URL").fill(url)
    page.get_by_label("Its key").fill(key)
    page.get_by_role("button", name="A question").click()


def test_two_services_are_compared(open_page: Open, urls: tuple[str, str]) -> None:
    page = open_page(allowed=[urls[1]])
    compare(page, urls[1] + "/", KEY)
    columns = page.locator(".column")
    expect(columns.locator("li")).to_have_count(18)
    expect(page.locator(".verdict")).to_contain_text("in the same place")
    drawn = page.locator(".gutter path")
    expect(drawn).to_have_count(9)
    orders = [
        [str(item.get_attribute("data-index")) for item in column.locator("li").all()] for column in columns.all()
    ]
    assert sorted(orders[0]) == sorted(orders[1])
    moved = [orders[0][rank] != orders[1][rank] for rank in range(9)]
    assert [path.get_attribute("class") != "same" for path in drawn.all()] == moved
    assert any(moved)


def test_a_second_service_that_allows_no_other_pages_is_explained(open_page: Open, urls: tuple[str, str]) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    page = open_page(url=urls[1], allowed=[urls[0], gone])
    page.locator("#key-open").click()
    enter_key(page)
    compare(page, urls[0])
    expect(page.get_by_role("alert")).to_contain_text("does not allow this page to call it")
    expect(page.get_by_role("alert")).to_contain_text(f"RERANKER_CORS_ORIGINS={_origin(urls[1])}")
    page.get_by_label("Its URL").fill(gone)
    rank(page)
    expect(page.get_by_role("alert")).to_contain_text(f"{gone} cannot be reached")
    page.get_by_label("Its URL").fill("ftp://host")
    rank(page)
    expect(page.get_by_role("alert")).to_contain_text("ftp://host is not the URL of a service")


def test_the_request_can_be_copied_as_code_that_runs(open_page: Open, urls: tuple[str, str], tmp_path: Path) -> None:
    page = open_page(url=urls[1])
    page.locator("#key-open").click()
    enter_key(page)
    passages = [*MOONS["documents"], 'It\'s a "quoted" $HOME `id` moon \\ 🌙']
    ask(page, str(MOONS["query"]), "\n".join(passages))
    page.locator("#options summary").click()
    page.get_by_label("Results to return").fill("2")
    page.get_by_label("Raw scores").check()
    page.get_by_role("button", name="Copy as code").click()
    expected = answer(urls[1], query=MOONS["query"], documents=passages, top_k=2, raw_scores=True)["results"]
    found = {}
    for name in ("curl", "Python", "TypeScript", "LangChain"):
        page.get_by_role("tab", name=name).click()
        found[name] = str(page.locator("#code").text_content())
        assert KEY not in found[name]
    environment = os.environ | {"RERANKER_API_KEY": KEY}
    sent = subprocess.run(["bash", "-c", found["curl"]], capture_output=True, text=True, env=environment, check=True)
    assert [each["index"] for each in json.loads(sent.stdout)["results"]] == [each["index"] for each in expected]
    (tmp_path / "snippet.py").write_text(found["Python"])
    run = [sys.executable, str(tmp_path / "snippet.py")]
    printed = subprocess.run(run, capture_output=True, text=True, env=environment, cwd=ROOT, check=True)
    assert printed.stdout.splitlines()[0] == f"{expected[0]['relevance_score']:.4f} {passages[expected[0]['index']]}"
    compile(found["LangChain"], "langchain", "exec")
    assert "page_content=" in found["LangChain"]
    assert "process.env.RERANKER_API_KEY" in found["TypeScript"]


def test_a_link_restores_the_request_and_never_reaches_a_server(open_page: Open) -> None:
    page = open_page()
    ask(page, "Which planet? Größe & 🌙", "one\ntwo")
    page.locator("#options summary").click()
    page.get_by_label("Results to return").fill("1")
    page.get_by_label("First stage").select_option("lexical")
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#toast")).to_contain_text("Link copied")
    address, fragment = page.url.split("#")
    other = open_page(f"#{fragment}")
    expect(other.get_by_label("Question", exact=True)).to_have_value("Which planet? Größe & 🌙")
    expect(other.get_by_label("Passages", exact=True)).to_have_value("one\ntwo")
    expect(other.locator("#options-summary")).to_have_text("top 1 · first stage: lexical")
    assert "?" not in address
    damaged = open_page(f"#{fragment[:20]}")
    expect(damaged.get_by_role("alert")).to_contain_text("The link is damaged")


@contextmanager
def load(url: str) -> Iterator[None]:
    """Requests in another thread: each one twice, so that the second hits the cache, and one that is invalid."""
    stopped = threading.Event()

    def send() -> None:
        httpx.post(f"{url}/rerank/query", json={})
        for number in count():
            if stopped.wait(0.05):
                return
            answer(url, query=f"moons {number // 2}", documents=MOONS["documents"])

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def test_the_dashboard_follows_the_load(open_page: Open, urls: tuple[str, str]) -> None:
    page = open_page("#dashboard")
    requests = page.get_by_label("Requests", exact=True).locator("dd").first
    expect(page.get_by_label("Service", exact=True)).to_contain_text("reranker-minilm-l6-v2")
    expect(page.get_by_label("Service", exact=True)).to_contain_text("passed: error")
    expect(requests).to_have_text("0")
    with load(urls[0]):
        expect(requests).not_to_have_text("0")
        expect(page.get_by_label("Documents", exact=True).locator("dd").last).to_have_text(re.compile(r"[1-9]\d* %"))
        expect(page.get_by_label("Latency", exact=True).locator("dd").first).to_have_text(re.compile("[1-9].* m?s"))
        expect(page.get_by_label("Stages", exact=True).locator("tbody td").first).to_contain_text("ms")
        expect(page.get_by_label("Rejections", exact=True)).to_contain_text("invalid request")
    expect(page.get_by_label("Load", exact=True)).to_contain_text("0 of 4")
    name = httpx.get(f"{urls[0]}/health").json()["instance"]
    expect(page.get_by_label("Service", exact=True)).to_contain_text(name)


def test_the_dashboard_asks_for_the_key_of_protected_metrics(open_page: Open, urls: tuple[str, str]) -> None:
    page = open_page("#dashboard", url=urls[1])
    expect(page.get_by_role("alert")).to_contain_text("The metrics of this service need an API key.")
    expect(page.get_by_label("Load", exact=True)).to_contain_text("0 of 1")  # from /health
    page.get_by_role("button", name="Enter a key").click()
    enter_key(page)
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.get_by_label("Memory", exact=True)).to_contain_text("MiB")


SCRAPE = """\
reranker_batch_tokens_sum {tokens}
reranker_batch_tokens_count {batches}
reranker_batch_token_budget 1000
reranker_tokens_total{{kind="text"}} {text}
reranker_tokens_total{{kind="padding"}} {padding}
reranker_request_seconds_bucket{{le="0.1"}} {fast}
reranker_request_seconds_bucket{{le="0.2"}} {all}
reranker_request_seconds_bucket{{le="+Inf"}} {all}
reranker_gpu_utilization 0.25
reranker_rejections_total{{reason="queue_full"}} {rejected}
"""
BEFORE = {"tokens": 500, "batches": 1, "text": 400, "padding": 100, "fast": 7, "all": 9, "rejected": 40}
AFTER = {"tokens": 2500, "batches": 5, "text": 1900, "padding": 600, "fast": 17, "all": 29, "rejected": 43}


def test_figures_are_differences_of_two_scrapes_of_the_same_replica(open_page: Open) -> None:
    """The second replica has other counters: a difference between the two would be nonsense."""
    page = open_page()
    scrapes = [("a:1", BEFORE), ("b:1", BEFORE | {"all": 999}), ("a:1", AFTER)]

    def metrics(route: Route) -> None:
        if scrapes:  # the next one is never answered, so the figures stay
            name, values = scrapes.pop(0)
            route.fulfill(body=SCRAPE.format(**values), headers={"x-reranker-instance": name})

    page.route("**/metrics", metrics)
    page.get_by_role("tab", name="Dashboard").click()
    expect(page.get_by_label("Replica").locator("option")).to_have_text(["a:1", "b:1"])
    expect(page.locator(".replicas")).to_contain_text("a:1 answered last")
    page.get_by_label("Replica").select_option("a:1")
    batches = page.get_by_label("Batches", exact=True)
    expect(batches.locator("dd")).to_have_text(["50 %", "25 %"])  # 2000 of 4 * 1000 tokens, 500 of 2000
    # Of 20 requests, 10 took at most 100 ms and the others at most 200.
    expect(page.get_by_label("Latency", exact=True).locator("dd")).to_have_text(["190 ms", "100 ms"])
    expect(page.get_by_label("Rejections", exact=True).locator("td")).to_have_text(["3", "43"])
    expect(page.get_by_label("GPU", exact=True)).to_contain_text("25 %")


@pytest.mark.skipif(not (ROOT / "app/ui/vendor/uPlot.esm.js").exists(), reason="scripts/ui vendor has not run")
def test_the_dashboard_draws_curves(open_page: Open) -> None:
    page = open_page("#dashboard")
    expect(page.locator(".chart canvas").first).to_be_visible()
    assert page.get_by_text("Figures only").count() == 0


def test_without_the_chart_library_the_dashboard_shows_figures(open_page: Open) -> None:
    page = open_page()
    page.route("**/vendor/*", lambda route: route.fulfill(status=404))
    page.get_by_role("tab", name="Dashboard").click()
    expect(page.get_by_text("Figures only: for curves, run scripts/ui vendor")).to_be_visible()
    expect(page.get_by_label("Memory", exact=True)).to_contain_text("MiB")


def test_colours_follow_the_system_and_the_button(open_page: Open) -> None:
    background = "() => getComputedStyle(document.documentElement).backgroundColor"
    light, dark = (open_page(color_scheme=scheme) for scheme in ("light", "dark"))
    colours = light.evaluate(background), dark.evaluate(background)
    assert colours[0] != colours[1]
    light.get_by_role("button", name="Colours: as the system").click()
    light.get_by_role("button", name="Colours: light").click()
    assert light.evaluate(background) == colours[1]
    light.reload()
    assert light.evaluate(background) == colours[1]


def test_the_page_fits_a_phone(open_page: Open) -> None:
    page = open_page(viewport=PHONE)
    width = "() => document.documentElement.scrollWidth"
    page.get_by_role("button", name="Long documents").click()
    assert order(page)[0] == 1
    assert page.locator(".figures").evaluate("(box) => box.getBoundingClientRect().top") < PHONE["height"]
    assert page.evaluate(width) == PHONE["width"]
    page.get_by_role("tab", name="Dashboard").click()
    expect(page.get_by_label("Memory", exact=True)).to_contain_text("MiB")
    assert page.evaluate(width) == PHONE["width"]


def test_the_keyboard_is_enough(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("tab", name="Playground").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Dashboard")).to_be_focused()
    expect(page.get_by_role("tabpanel", name="Dashboard")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    page.get_by_role("button", name="Support articles").focus()
    page.keyboard.press("Enter")
    assert len(order(page)) == 9
    expect(page.locator("#spoken")).to_contain_text("9 passages ranked. First: If you were charged")
    page.get_by_role("button", name="Copy as code").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Copy as code")).to_be_focused()


@pytest.mark.skipif(not AXE.exists(), reason="scripts/ui modules has not run")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_page: Open, urls: tuple[str, str], scheme: str) -> None:
    page = open_page(allowed=[urls[1]], color_scheme=scheme, reduced_motion="reduce")
    page.evaluate(AXE.read_text())

    def violations() -> list[str]:
        found = page.evaluate("() => axe.run()")["violations"]
        return [f"{each['id']}: {node['html'][:200]}" for each in found for node in each["nodes"]]

    assert violations() == []
    page.get_by_role("button", name="Long documents").click()
    order(page)
    page.locator("#options summary").click()
    assert violations() == []
    page.get_by_role("button", name="Copy as code").click()
    assert violations() == []
    page.keyboard.press("Escape")
    page.locator("#options summary").click()
    compare(page, urls[1])
    expect(page.get_by_role("alert")).to_be_visible()  # the key is missing
    assert violations() == []
    page.get_by_role("tab", name="Dashboard").click()
    expect(page.get_by_label("Memory", exact=True)).to_contain_text("MiB")
    assert violations() == []

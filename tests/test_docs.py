"""Documentation and code say the same."""

import re
from pathlib import Path

import pytest
import yaml

from app.api.dialects import native
from app.api.paths import HEALTH_PATHS
from app.config import Settings
from app.config_types import DEVICE_DEFAULTS
from app.environment import environment_names
from app.main import create_app
from tests.clients.environments import ENVIRONMENTS
from tests.clients.test_npm import PACKAGES
from tests.conftest import Serve
from tools import docs

ROOT = Path(__file__).parent.parent
JSON = {"content-type": "application/json"}
README = (ROOT / "README.md").read_text()
PAGES = sorted(["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "training/README.md"]) + sorted(
    str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")
)


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def test_generated_files_are_up_to_date() -> None:
    compose = (ROOT / "docker-compose.yaml").read_text()
    assert (ROOT / "docs" / "configuration.md").read_text() == docs.configuration(), "run scripts/docs"
    assert compose == docs.compose(compose), "run scripts/docs"


def test_the_configuration_page_describes_every_setting() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| [^|]+ \| (.+) \|$", text, re.MULTILINE))
    assert list(rows) == environment_names()
    assert [name for name, meaning in rows.items() if not meaning.endswith(".")] == []


def test_the_configuration_page_names_the_variables_of_scripts() -> None:
    files = [file for pattern in ("*.sh", "scripts/*", "docker/**/*.sh") for file in ROOT.glob(pattern)]
    text = (ROOT / "docs" / "configuration.md").read_text()
    variable = re.compile(r"\$\{?(RERANKER_\w+|PERFORMANCE_TEST_URL|PYTHON\b|MODEL\b)")
    found = {name for file in files for name in variable.findall(file.read_text())}
    assert len(found) > 8
    assert {name for name in found if f"`{name}`" not in text} == set()


async def test_every_metric_is_documented(serve: Serve) -> None:
    async with serve():
        families = list(serve.service.metrics.registry.collect())
    endings = {"counter": "_total", "info": "_info"}  # as they are in `/metrics`
    ours = [family for family in families if family.name.startswith("reranker_")]
    names = {family.name + endings.get(family.type, "") for family in ours}
    assert len(names) > 15
    assert {name for name in names if f"`{name}`" not in page("observability")} == set()


def test_every_route_is_documented() -> None:
    app = create_app(Settings())
    documented = {path.split("{")[0] for path in app.openapi()["paths"]}
    hidden = {*native.OTHER_ROUTES, *HEALTH_PATHS, "/invocations", "/v3/models", "/openai/v1/models"}
    routes = documented | hidden
    assert len(hidden) > 15
    assert {path for path in routes if path not in page("api")} == set()


def test_every_tested_client_is_documented_with_its_version() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \|", page("migrate"), re.MULTILINE)
    assert sorted("==".join(row) for row in rows) == sorted(
        requirement for environment in ENVIRONMENTS for requirement in environment.requirements
    )
    assert [package for package in PACKAGES if f"`{package}`" not in page("migrate")] == []


def documented_profiles() -> list[dict[str, str]]:
    """The settings of each documented profile."""
    blocks = re.findall(r"```bash\n# Profile: .*\n((?:[A-Z_]+=\S+ \\\n)+)", page("performance"))
    return [dict(re.findall(r"([A-Z_]+)=(\S+)", block)) for block in blocks]


def test_documented_profiles_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(documented_profiles()) == 3
    for profile in documented_profiles():
        with monkeypatch.context() as patch:
            for name, value in profile.items():
                assert name in environment_names()
                patch.setenv(name, value)
            Settings()


async def test_the_examples_of_the_comparison_run(serve: Serve) -> None:
    bodies = re.findall(r"curl -s (\S+) .*? -d '(\{[^']+\})'", page("compare"), re.DOTALL)
    async with serve() as client:
        for url, body in bodies:
            answer = await client.post(url.removeprefix("http://127.0.0.1:8000"), content=body, headers=JSON)
            assert (answer.status_code, "x-reranker-warning" in answer.headers) == (200, False), answer.text
    assert len(bodies) == 3


def test_every_feature_in_the_comparison_links_to_an_example() -> None:
    cells = re.findall(r"^\| [A-Z][^|]* \| ([^|]+) \|", page("compare"), re.MULTILINE)
    assert len(cells) == 20
    assert [cell for cell in cells if "](" not in cell] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", (ROOT / page).read_text()):
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page} links to {target}#{anchor}"


def anchors(file: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_signs_for_more_machines_are_those_of_autoscaling_and_alerts() -> None:
    text = page("deploy")
    scaling = yaml.safe_load((ROOT / "deploy/helm/reranker/values.yaml").read_text())["autoscaling"]["keda"]
    assert f"`reranker_pending_pairs` stays above {scaling['pendingPairs']} per replica" in text
    [group] = yaml.safe_load((ROOT / "docker/monitoring/alerts.yml").read_text())["groups"]
    rules = {rule["alert"]: rule["expr"] for rule in group["rules"]}
    [percent] = re.findall(r"over (\d+) % of the requests are rejected", text)
    assert rules["RerankerSuccessRateLow"].endswith(f"< {1 - int(percent) / 100}\n")
    [query] = re.findall(r"```text\n(sum\(rate.+)\n```", text)
    assert re.findall(r"\w+{.+?}", rules["RerankerQueueFull"]) == re.findall(r"\w+{.+?}", query)


def test_every_set_of_values_of_the_chart_is_documented() -> None:
    rows = re.findall(r"^\| `([\w-]+\.yaml)` \|", page("deploy"), re.MULTILINE)
    assert sorted(rows) == sorted(file.name for file in (ROOT / "deploy/helm/reranker/values").iterdir())


def test_messages_in_troubleshooting_exist() -> None:
    files = [
        *(ROOT / "app").rglob("*.py"),
        *(ROOT / "reranker_client").rglob("*.py"),
        *ROOT.glob("*.sh"),
        ROOT / "scripts/setup",
    ]
    text = "\n".join(
        file.read_text() for file in [*files, *ROOT.glob("docker/*proxy/*.cfg"), ROOT / "docker/nginx/nginx.conf"]
    )
    text = re.sub(r'"\s*\n\s*f?"', "", text)  # strings over several lines
    messages = re.findall(r"`([^`]+)`", " ".join(re.findall(r"^\| (`[^|]+) \|", page("troubleshooting"), re.MULTILINE)))
    parts = [part.strip(" :;,.=") for message in messages for part in re.split("…|FIELD|FILE", message)]
    assert len(parts) > 100
    assert [part for part in parts if part not in text] == []


def test_the_threat_model_names_settings_defaults_and_tests_that_there_are() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    known = set(environment_names()) | {"RERANKER_URL"}
    named = set(re.findall(r"`((?:RERANKER|CACHE|ENABLE)_[A-Z_]+)", text))
    assert named <= known
    defaults = {str(field.alias): field.default for field in Settings.model_fields.values()}
    cpu = DEVICE_DEFAULTS["cpu"]
    defaults |= {"RERANKER_MAX_PARALLEL": cpu.max_parallel, "RERANKER_MAX_QUEUE": cpu.max_queue}
    told = dict(re.findall(r"`([A-Z_]+)` (\d+)\b", text))
    assert len(told) >= 10
    assert {name: float(defaults[name]) for name in told} == {name: float(value) for name, value in told.items()}
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(tests) >= 15
    assert [name for file, name in tests if f"def {name}(" not in (ROOT / file).read_text()] == []


def test_promises_name_tests_that_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page("reliability"))
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


def test_the_architecture_names_every_module() -> None:
    text = page("architecture")
    modules = [path.name for path in (ROOT / "app").rglob("*.py") if path.name != "__init__.py"]
    assert [name for name in modules if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize("page", PAGES)
def test_named_commands_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    scripts = re.findall(r"\b((?:scripts|docker)/[\w.-]*\w)", text)
    assert [name for name in scripts if not (ROOT / name).exists()] == []
    figures = re.findall(r'"(\w+)": "(?:speed|reliability)\.', (ROOT / "benchmarks/__main__.py").read_text())
    assert set(re.findall(r"scripts/bench (\w+)", text)) <= set(figures)

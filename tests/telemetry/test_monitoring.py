"""Alert rules, scrape configuration and dashboard, checked with promtool and against the service's real metrics."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.conftest import Serve
from tests.fakes import FakeEngine

MONITORING = Path(__file__).parents[2] / "docker" / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana/dashboards/reranker.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
RULES = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (prometheus)")


def promtool(*arguments: object) -> str:
    found = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, check=False, cwd=MONITORING
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@needs_promtool
def test_the_configuration_is_valid() -> None:
    promtool("check", "config", "prometheus.yml")


@needs_promtool
def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", "alerts_test.yml")


def test_every_alert_is_tested() -> None:
    tested = set(re.findall(r"alertname: (\w+)", (MONITORING / "alerts_test.yml").read_text()))
    assert {rule["alert"] for rule in RULES} == tested


@needs_promtool
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_dashboards_queries_are_valid(expression: str, tmp_path: Path) -> None:
    rules = {
        "groups": [{"name": "g", "rules": [{"record": "r", "expr": expression.replace("$__rate_interval", "1m")}]}]
    }
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump(rules))
    promtool("check", "rules", file)


async def test_alerts_and_dashboard_ask_for_metrics_that_exist(serve: Serve, engine: FakeEngine) -> None:
    engine.info = replace(engine.info, device="cuda:0")  # has all metrics of a CPU, and more
    async with serve() as client:
        await client.post("/rerank", json={"query": "a", "documents": ["a"]})
        text = (await client.get("/metrics")).text
    there = set(re.findall(r"^(\w+)", text, re.MULTILINE)) | set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    asked = {
        name
        for expression in [*EXPRESSIONS, *(rule["expr"] for rule in RULES)]
        for name in re.findall(r"\b(?:reranker|process)_\w+", expression)
    }
    # A counter with labels has a TYPE line before its first sample.
    assert {name for name in asked if name not in there and name.removesuffix("_total") not in there} == set()


def test_grafana_finds_the_dashboard_and_prometheus() -> None:
    services = yaml.safe_load((MONITORING.parents[1] / "docker-compose.yaml").read_text())["services"]
    source, target, _ = services["grafana"]["volumes"][0].split(":")
    grafana = MONITORING.parents[1] / source
    [provider] = yaml.safe_load((grafana / "dashboards/dashboards.yml").read_text())["providers"]
    inside = Path(provider["options"]["path"]).relative_to(target)
    assert [file.name for file in (grafana / inside).glob("*.json")] == ["reranker.json"]
    [prometheus] = yaml.safe_load((grafana / "datasources/prometheus.yml").read_text())["datasources"]
    assert prometheus["url"].split("//")[1].split(":")[0] in services
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {prometheus["uid"]}


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24

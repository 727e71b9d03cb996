"""What the Helm chart scales by: real metrics, and queries that give the number of pods that the load needs."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Serve
from tests.deploy.chart import ROOT, Chart

pytestmark = pytest.mark.timeout(600)

POD = 'namespace="prod",service="reranker-http"'
LOADS = [
    # Tokens computed in 15 s, by pod; the tokens per second that each can compute; pods' worth of work.
    ([15_000, 15_000], 1_000, 2.0),
    ([15_000, 0], 1_000, 1.0),
    ([2], 20_000, 2 / 15 / 20_000),  # the probe of an idle engine
    ([0], 0, 0.0),  # nothing computed yet: no speed is known
]


def triggers(chart: Chart, *sets: str, **values: object) -> dict[str, Any]:
    found = chart.render(*sets, **values)["ScaledObject"]["spec"]["triggers"]
    return {trigger.get("name", trigger["type"]): trigger for trigger in found}


async def test_queries_ask_for_metrics_that_exist(chart: Chart, serve: Serve) -> None:
    async with serve() as client:
        text = (await client.get("/metrics")).text
    there = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    queries = [trigger["metadata"]["query"] for trigger in triggers(chart, "keda").values()]
    asked = {name for query in queries for name in re.findall(r"\breranker_\w+", query)}
    assert asked == {"reranker_pending_pairs", "reranker_tokens_total", "reranker_tokens_per_second"}
    assert asked <= there


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (prometheus)")
@pytest.mark.parametrize(("computed", "speed", "pods"), LOADS)
def test_the_load_is_counted_in_pods(
    chart: Chart, tmp_path: Path, computed: list[int], speed: int, pods: float
) -> None:
    series = []
    for number, tokens in enumerate(computed):
        labels = f'{POD},pod="{number}"'
        series += [
            {"series": f'reranker_tokens_total{{kind="text",{labels}}}', "values": f"0+{tokens}x20"},
            {"series": f'reranker_tokens_total{{kind="padding",{labels}}}', "values": "0x20"},
            {"series": f"reranker_tokens_per_second{{{labels}}}", "values": f"{speed}x20"},
            {"series": f"reranker_pending_pairs{{{labels}}}", "values": "30x20"},
        ]
    # Another release does not count.
    other = POD.replace("prod", "test")
    series += [{"series": f"reranker_pending_pairs{{{other}}}", "values": "500x20"}]
    found = triggers(chart, "keda")
    expected = {"busy-pods": pods, "pending-pairs": 30 * len(computed)}
    checks = [
        {"expr": found[name]["metadata"]["query"], "eval_time": "4m", "exp_samples": [{"labels": "{}", "value": value}]}
        for name, value in expected.items()
    ]
    test = {"tests": [{"interval": "15s", "input_series": series, "promql_expr_test": checks}]}
    (tmp_path / "test.yml").write_text(json.dumps(test))
    command = ["promtool", "test", "rules", tmp_path / "test.yml"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr + checked.stdout
    # The probe of an idle engine must not keep a pod alive.
    active = pods > float(found["busy-pods"]["metadata"]["activationThreshold"])
    assert active == (pods > 0.5)


def test_a_target_of_0_leaves_its_trigger_out(chart: Chart) -> None:
    assert set(triggers(chart, "keda")) == {"pending-pairs", "busy-pods"}
    assert set(triggers(chart, "keda", autoscaling__keda__pendingPairs=0)) == {"busy-pods"}
    assert set(triggers(chart, "keda", autoscaling__keda__utilization=0)) == {"pending-pairs"}


def test_zero_pods_are_woken_by_a_trigger_that_needs_no_pod(chart: Chart) -> None:
    things = chart.render("scale-to-zero")
    assert things["ScaledObject"]["spec"]["minReplicaCount"] == 0
    # The object of KEDA's HTTP add-on, in the documentation.
    [route] = map(yaml.safe_load, re.findall(r"```yaml\n(.+?)```", (ROOT / "docs/deploy.md").read_text(), re.DOTALL))
    assert (
        route["metadata"]["name"] == triggers(chart, "scale-to-zero")["external-push"]["metadata"]["httpScaledObject"]
    )
    assert route["metadata"]["annotations"] == {"httpscaledobject.keda.sh/skip-scaledobject-creation": "true"}
    target, service = route["spec"]["scaleTargetRef"], things["Service"]
    assert target["name"] == things["Deployment"]["metadata"]["name"]
    assert target["service"] == service["metadata"]["name"]
    assert target["port"] == service["spec"]["ports"][0]["port"]
    sources = things["NetworkPolicy"]["spec"]["ingress"][0]["from"]
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}} in sources
    # It would not see the requests of the chart's ingress.
    assert "does not see them, so none starts the first pod" in chart.refusal("scale-to-zero", ingress__enabled=True)


@pytest.mark.parametrize(("name", "kind"), [("hpa", "HorizontalPodAutoscaler"), ("keda", "ScaledObject")])
def test_the_autoscaler_scales_the_deployment(chart: Chart, name: str, kind: str) -> None:
    things = chart.render(name)
    assert things[kind]["spec"]["scaleTargetRef"]["name"] == things["Deployment"]["metadata"]["name"]


def test_the_alerts_find_the_metrics_of_a_release_with_another_name(chart: Chart) -> None:
    [endpoint] = chart.render("monitored", nameOverride="ranking")["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": "reranker"}]
    assert 'up{job="reranker"}' in (ROOT / "docker/monitoring/alerts.yml").read_text()


def test_prometheus_gets_a_key_for_protected_metrics(chart: Chart) -> None:
    values = {"settings": {"RERANKER_PROTECT_METRICS": True}, "serviceMonitor__keySecret__name": "of-prometheus"}
    [endpoint] = chart.render("monitored", **values)["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["authorization"] == {"credentials": {"name": "of-prometheus", "key": "key"}}
    assert yaml.safe_dump(chart.render("monitored")["ServiceMonitor"]).count("authorization") == 0

"""The Helm chart, rendered."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "reranker"
SETS = sorted(file.stem for file in (CHART / "values").glob("*.yaml"))
IMAGE = "registry.example/reranker"

Thing = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Chart:
    helm: str

    def run(self, command: str, *sets: str, **values: object) -> subprocess.CompletedProcess[str]:
        """`helm COMMAND` with the files of `sets`. `values` are set on top: `a__b=1` is `a.b`."""
        options = [f"--values={CHART / 'values' / name}.yaml" for name in sets]
        for name, value in {"image__repository": IMAGE, **values}.items():
            kind = "--set-string" if isinstance(value, str) else "--set-json"
            text = value if isinstance(value, str) else json.dumps(value)
            options.append(f"{kind}={name.replace('__', '.')}={text}")
        return subprocess.run(
            [self.helm, *command.split(), *options, str(CHART)], capture_output=True, text=True, check=False
        )

    def render(self, *sets: str, **values: object) -> dict[str, Thing]:
        """The objects of a release named reranker, by kind."""
        found = self.run("template reranker --namespace prod", *sets, **values)
        assert found.returncode == 0, found.stderr
        things = [thing for thing in yaml.safe_load_all(found.stdout) if thing]
        assert len({thing["kind"] for thing in things}) == len(things)
        return {thing["kind"]: thing for thing in things}

    def refusal(self, *sets: str, **values: object) -> str:
        """Why it is not rendered."""
        found = self.run("template reranker", *sets, **values)
        assert found.returncode != 0
        return found.stderr


def pod(things: dict[str, Thing]) -> Thing:
    found: Thing = things["Deployment"]["spec"]["template"]["spec"]
    return found


def container(things: dict[str, Thing]) -> Thing:
    [found] = pod(things)["containers"]
    return dict(found)


def environment_of(container: Thing) -> dict[str, str]:
    found = {entry["name"]: entry["value"] for entry in container["env"]}
    assert len(found) == len(container["env"])
    assert all(isinstance(value, str) for value in found.values())
    return found

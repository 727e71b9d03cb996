"""The client as a package that is installed without the service."""

import ast
import subprocess
import sys
import tomllib
from email.parser import Parser
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from app import __version__

ROOT = Path(__file__).parents[1]
CLIENT = ROOT / "reranker_client"


def project(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return table


def third_party_imports() -> set[str]:
    names: set[str] = set()
    for file in CLIENT.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module).split(".")[0])
    return names - sys.stdlib_module_names - {CLIENT.name}


def test_the_client_requires_exactly_what_it_imports() -> None:
    required = {requirement.partition(">=")[0] for requirement in project(CLIENT)["dependencies"]}
    assert required == {name.replace("_", "-") for name in third_party_imports()}


def test_the_client_and_the_service_agree_on_requirements_and_license() -> None:
    client, service = project(CLIENT), project(ROOT)
    assert set(client["dependencies"]) <= set(service["dependencies"])
    assert (CLIENT / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (client["license"], client["requires-python"]) == (service["license"], service["requires-python"])


@pytest.mark.e2e
def test_the_wheel_contains_only_the_client(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(CLIENT)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    if built.returncode and "No matching distribution found for hatchling" in built.stderr:
        pytest.skip("pip cannot download hatchling, which builds the wheel")
    assert built.returncode == 0, built.stderr
    with ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        metadata = Parser().parsestr(wheel.read(next(name for name in names if name.endswith("/METADATA"))).decode())
    modules = {f"reranker_client/{file.name}" for file in CLIENT.glob("*.py")}
    assert {name for name in names if ".dist-info/" not in name} == modules | {"reranker_client/py.typed"}
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    assert (metadata["Name"], metadata["Version"]) == ("reranker-client", __version__)

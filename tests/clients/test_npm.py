"""Client libraries in TypeScript, installed by npm into a temporary folder."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.common import KEY
from tests.clients.environments import HERE
from tests.conftest import Serve
from tests.e2e.process import MOONS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PACKAGES = ("ai@6.0.326", "@ai-sdk/cohere@3.0.63", "@langchain/cohere@1.0.5", "@langchain/core@1.4.0")
SCRIPTS = ("ai_sdk.mjs", "langchain_cohere.mjs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages and the scripts."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("npm")
    try:
        options = ["--prefix", folder, "--no-audit", "--no-fund", "--ignore-scripts"]
        options += ["--no-package-lock", "--legacy-peer-deps"]  # less work for the same packages
        subprocess.run(["npm", "install", *options, *PACKAGES], check=True, capture_output=True, text=True, timeout=300)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{', '.join(PACKAGES)} cannot be installed here: {str(error.stderr).strip()[-300:]}")
    for script in SCRIPTS:
        shutil.copy(HERE / script, folder)
    return folder


async def run(script: Path, url: str, key: str) -> tuple[int | None, str]:
    """The exit status and the output."""
    process = await asyncio.create_subprocess_exec(
        *("node", script, url, key, MOONS["query"], *MOONS["documents"]),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


@pytest.mark.parametrize("script", SCRIPTS)
async def test_a_typescript_client_works_with_the_service(folder: Path, script: str, serve: Serve) -> None:
    async with serve(api_keys=KEY) as client:
        url = str(client.base_url).rstrip("/")
        status, output = await run(folder / script, url, KEY)
        assert status == 0, output
        ranking = json.loads(output.splitlines()[-1])
        refused, told = await run(folder / script, url, "another")
    # The fake engine ranks by shared words.
    assert [index for index, _ in ranking] == [2, 4]
    assert 1 > ranking[0][1] > ranking[1][1] > 0
    assert refused != 0
    assert "The API key is wrong" in told

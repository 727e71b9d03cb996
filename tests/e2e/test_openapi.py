"""Thousands of generated requests, valid and invalid, checked against the OpenAPI document."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.conftest import Serve

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

CASES = 2000


async def test_every_response_matches_the_openapi_document(serve: Serve, tmp_path: Path) -> None:
    async with serve(documents="memory") as client:
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("st"),
            *("--config-file", Path(__file__).with_name("schemathesis.toml"), "run", f"{client.base_url}/openapi.json"),
            *("--max-examples", "50", "--phases", "examples,coverage,fuzzing", "--checks", "all"),
            # The service accepts "true" as true and 0 as false, because clients send them.
            *("--exclude-checks", "negative_data_rejection", "--seed", "1", "--no-color"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = (await process.communicate())[0].decode()
    generated = re.search(r"(\d+) generated", output)
    assert process.returncode == 0, output[-5000:]
    assert generated
    assert int(generated[1]) >= CASES

"""A model that does not fit into memory is refused with the figures, before the kernel ends the process."""

import json
import logging
import re
import shlex
import sys
from pathlib import Path

import pytest

from app.config import Settings
from app.engines.load import load_engine
from app.engines.models.size import check_fits, parameters
from app.errors import StartupError
from app.first_stage.sentence_embeddings import SentenceEmbeddings
from tests.conftest import free_port
from tests.e2e.process import start
from tests.models import UNMEASURED, make_model, make_modular

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def declare(file: Path, rows: int) -> None:
    """Write a header of safetensors that declares rows of a thousand numbers, without the numbers."""
    header = json.dumps({"embeddings": {"dtype": "F32", "shape": [rows, 1000], "data_offsets": [0, rows * 4000]}})
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode())


def small_machine(file: Path) -> Path:
    """A Python with a memory limit of the size that a tiny model needs for loading."""
    code = (
        "import sys, runpy, app.engines.models.size as size; size.memory_limit = lambda: 500_100_000; "
        "sys.argv = sys.argv[2:]; runpy.run_module('app.export', run_name='__main__', alter_sys=True)"
    )
    file.write_text(f'#!/bin/sh\nexec {sys.executable} -c {shlex.quote(code)} "$@"\n')
    file.chmod(0o755)
    return file


def test_parameters_are_counted_once(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "tiny")
    whole = parameters(folder)
    assert whole > 1000
    for part in (1, 2):
        declare(folder / f"model-0000{part}-of-00002.safetensors", 10)
    declare(folder / "adapter.safetensors", 10)
    assert parameters(folder) == whole
    (folder / "model.safetensors").unlink()
    assert parameters(folder) == 20_000
    assert parameters(make_modular(tmp_path / "modular")) > 1000


TOO_LARGE = (
    r"Loading RERANKER_MODEL='\S+/huge' needs about 4000\.5 GB of memory for 1,000,000 million .*"
    r"Use a smaller model, RERANKER_PRECISION=bf16, or more memory$"
)


def make_huge(folder: Path) -> Path:
    make_model(folder)
    declare(folder / "model.safetensors", 10**9)
    return folder


def test_a_model_larger_than_the_memory_stops_the_start_in_one_line(tmp_path: Path) -> None:
    model = make_huge(tmp_path / "huge")
    process = start(free_port(), RERANKER_MODEL=model, RERANKER_BACKEND="torch", RERANKER_EXPORT_DIR=tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in errors
    [error] = [line for line in errors.splitlines() if "Cannot start: " in line]
    assert re.search(TOO_LARGE, error)


@pytest.mark.usefixtures("exports_here")
def test_a_model_larger_than_the_memory_cannot_be_exported_either(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=TOO_LARGE) as raised:
        load_engine(Settings(model=str(make_huge(tmp_path / "huge")), export_dir=tmp_path / "store"))
    assert "\n" not in str(raised.value)


def test_a_first_stage_larger_than_the_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"^Loading RERANKER_PREFILTER_MODEL='\S+/huge' needs about 4000\.5 GB"):
        SentenceEmbeddings(str(make_huge(tmp_path / "huge")))


def test_a_model_that_can_be_loaded_but_not_exported_serves_on_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The export runs in another process, which reads the limit of the machine."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("app.engines.models.store.sys.executable", str(small_machine(tmp_path / "python")))
    model = str(make_model(tmp_path / "tiny"))
    settings = Settings(model=model, precision="fp32", export_dir=tmp_path / "store", **UNMEASURED)
    engine = load_engine(settings)
    assert engine.info.backend == "torch"
    assert "Exporting tiny needs about 0.5 GB of memory" in caplog.text
    assert "the limit is 0.5 GB. Export it on a machine with more memory (reranker export)" in caplog.text


def test_a_model_that_fits_exactly_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engines.models.size.memory_limit", lambda: 500_000_000 + 4_000)
    check_fits("tiny", 1_000, 4, "Loading", "")
    with pytest.raises(StartupError):
        check_fits("tiny", 1_001, 4, "Loading", "")
    monkeypatch.setattr("app.engines.models.size.memory_limit", lambda: 0)  # the system does not say
    check_fits("tiny", 10**12, 4, "Loading", "")

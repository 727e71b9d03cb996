"""Export, and the engines that serve what was exported, against the torch engine."""

import gzip
import json
import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from filelock import FileLock
from sentence_transformers import CrossEncoder

from app.config import Settings
from app.engines.load import _candidates, cpu_precisions, load_artefact, load_engine
from app.engines.models.artefact import Manifest, ScoreCalibration, scratch_folder
from app.engines.models.source import EMBEDDED, ModelSource, locate_model
from app.engines.models.store import failed_exports, find_or_export
from app.engines.openvino import PART_TOKENS, OpenVinoEngine, bucket_length, parts
from app.engines.openvino_model import Configuration, compile_model
from app.engines.protocol import Engine
from app.engines.schedule import Schedule
from app.errors import EngineBroken, StartupError, UnusableModel, UnwritableFolder
from app.evaluation.lines import UnusableCollection
from app.export.command import export_model
from app.export.parity import Group, logits, ndcg, read_groups
from tests.models import CONFIGS, UNMEASURED, export, export_here, make_bi_encoder, make_model, pickled

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor:Warning"),
]

GROUP = Group(
    "what causes the tides",
    [
        "moon gravity causes tides",
        "",
        "bread",
        "the sea and the moon " * 30,
        "stock market",
        "light and energy of a plant",
    ],
)


def near(first: list[float], second: list[float], tolerance: float) -> bool:
    return bool(np.abs(np.subtract(first, second)).max() <= tolerance)


@pytest.mark.parametrize("backend", ["openvino", "onnx"])
@pytest.mark.parametrize("family", CONFIGS)
def test_float32_exports_equal_torch(tmp_path: Path, family: str, backend: Any) -> None:
    folder = make_model(tmp_path / family, family, spread=0.1)
    manifest = export(folder, tmp_path / "out", backend, force=False)
    reference = load_engine(Settings(backend="torch", model=str(folder), **UNMEASURED))
    exported = load_artefact(tmp_path / "out", 512, 2)
    assert near(logits(reference, GROUP), logits(exported, GROUP), 1e-5)
    assert manifest.parity is not None
    assert manifest.parity.kendall_tau > 0.99
    assert manifest.parity.max_score_difference < 1e-5
    assert (exported.info.max_length, exported.info.precision, exported.info.backend) == (64, "fp32", backend)
    assert near(reference.activate([2.0, -900.0]), exported.activate([2.0, -900.0]), 1e-6)


@pytest.mark.parametrize("backend", ["openvino", "onnx"])
def test_int8_exports_rank_as_torch(tmp_path: Path, backend: Any) -> None:
    folder = make_model(tmp_path / "bert", spread=0.3)
    calibration = tmp_path / "mine.jsonl"
    calibration.write_text("\n".join([json.dumps({"query": GROUP.query, "documents": GROUP.documents})] * 3))
    manifest = export(folder, tmp_path / "out", backend, "int8", calibration=calibration)
    assert manifest.calibration == "mine.jsonl"
    size = sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert size < 2_000_000
    reference = load_engine(Settings(backend="torch", model=str(folder), **UNMEASURED))
    exported = load_artefact(tmp_path / "out", 512, 2)
    expected = logits(reference, GROUP)
    assert np.ptp(expected) > 1
    assert near(expected, logits(exported, GROUP), 0.15 * np.ptp(expected))


def test_the_shipped_export_ranks_as_the_original(tmp_path: Path) -> None:
    exported = load_engine(Settings(backend="openvino", precision="int8", export_dir=tmp_path, **UNMEASURED))
    assert (exported.info.backend, exported.info.precision) == ("openvino", "int8")
    reference = load_engine(Settings(backend="torch", **UNMEASURED))
    first, second = logits(reference, GROUP), logits(exported, GROUP)
    assert int(np.argmax(first)) == int(np.argmax(second)) == 0
    assert near(reference.activate(first), exported.activate(second), 0.15)
    manifest = Manifest.read(EMBEDDED / "openvino-int8")
    assert manifest.parity is not None
    assert manifest.parity.kendall_tau >= 0.95


@pytest.mark.parametrize("activation", ["sigmoid", "identity"])
def test_a_calibration_in_the_manifest_changes_the_scores_and_no_logit(tmp_path: Path, activation: Any) -> None:
    folder = tmp_path / "calibrated"
    shutil.copytree(EMBEDDED / "openvino-int8", folder)
    manifest = Manifest.read(folder).model_copy(update={"activation": activation})
    manifest.write(folder)
    before = load_artefact(folder, None, 1)
    manifest.model_copy(update={"score_calibration": ScoreCalibration(scale=0.5, shift=-1.0)}).write(folder)
    after = load_artefact(folder, None, 1)
    assert after.activate([4.0, -900.0, 0.0]) == pytest.approx([1 / (1 + np.exp(-1)), 0.0, 1 / (1 + np.exp(1))])
    assert logits(after, GROUP) == logits(before, GROUP)
    assert after.info.activation == "sigmoid"
    assert after.info.fingerprint != before.info.fingerprint, "cached under the same key as before"


@pytest.mark.parametrize("scale", [0, -1, "NaN"])
def test_a_calibration_that_would_change_the_order_is_refused(tmp_path: Path, scale: Any) -> None:
    folder = tmp_path / "calibrated"
    shutil.copytree(EMBEDDED / "openvino-int8", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["score_calibration"] = {"scale": scale, "shift": 0}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StartupError, match=r"score_calibration\.scale: "):
        load_artefact(folder, None, 1)


def make_engine(kind: str, folder: Path) -> Engine:
    """The embedded model for OpenVINO, which compiles kernels for each shape. A tiny model for the other engines."""
    if kind in ("int8", "bf16"):
        return load_artefact(EMBEDDED / f"openvino-{kind}", None, 2)
    model = make_model(folder / "tiny", spread=0.5)  # scores far apart
    if kind == "torch":
        return load_engine(Settings(backend="torch", model=str(model), export_dir=folder, **UNMEASURED))
    export(model, folder / "out", "onnx", "int8")
    return load_artefact(folder / "out", None, 2)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("int8", 0.05), ("bf16", 0.02), ("torch", 0.02), ("onnx int8", 0.05)], ids=str
)
def test_a_score_does_not_depend_on_its_batch(tmp_path: Path, kind: str, tolerance: float) -> None:
    engine = make_engine(kind, tmp_path)
    words = "the moon and the gravity of the sea causes tides , bread and light of a plant".split()  # noqa: SIM905
    documents = [" ".join(words[at % 9 :] * (1 + at % 7)) for at in range(63)] + ["", "moon", "the sea " * 500]
    pairs = engine.encode("what causes tides", documents)
    alone = np.array([engine.score([pair])[0] for pair in pairs])
    crowds = {
        "all at once": engine.score(pairs),
        "in another order": engine.score(pairs[::-1])[::-1],
        "20 at a time": [logit for at in range(0, len(pairs), 20) for logit in engine.score(pairs[at : at + 20])],
        "between long ones": [
            logit
            for at in range(0, len(pairs), 8)
            for logit in engine.score([pairs[-1], *pairs[at : at + 8], pairs[-1]])[1:-1]
        ],
        "on two threads": list(ThreadPoolExecutor(2).map(lambda pair: engine.score([pair])[0], pairs))
        if engine.info.batches_at_once > 1
        else alone,
    }
    assert np.ptp(alone) > 10 * tolerance
    for name, logits_there in crowds.items():
        assert np.abs(alone - logits_there).max() <= tolerance, name
        far_apart = np.subtract.outer(alone, alone) > 0.1
        assert (np.subtract.outer(logits_there, logits_there)[far_apart] > 0).all(), name


def test_every_pair_is_in_one_part_of_bounded_size() -> None:
    lengths = [3, 512, 17, 64, 65, 200, 31, 90, 128, 256, 5, 5, 5, 5, 5, 5, 5, 5]
    split = parts(lengths, PART_TOKENS)
    assert sorted(index for part in split for index in part) == list(range(len(lengths)))
    for part in split:
        [width] = {bucket_length(lengths[index]) for index in part}  # whatever else is in the batch
        assert len(part) == 1 or len(part) * width <= PART_TOKENS


def test_there_are_few_shapes() -> None:
    shapes = {
        (rows, bucket_length(length))
        for length in range(1, 513)
        for rows in range(1, 1 + max(1, PART_TOKENS // bucket_length(length)))
    }
    assert len(shapes) < 100
    assert len({bucket_length(length) for length in range(1, 8193)}) < 60


def test_padding_does_not_change_scores_with_local_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding tokens that see no other token are nothing to the real ones, whatever attends to them later."""
    monkeypatch.setattr(CONFIGS["modernbert"], "num_hidden_layers", 4)
    monkeypatch.setattr(
        CONFIGS["modernbert"],
        "layer_types",
        ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    )
    folder = make_model(tmp_path / "deep", "modernbert", spread=0.2)
    export(folder, tmp_path / "out")
    documents = ["moon " * count for count in (8, 10, 11, 27, 30)]
    theirs = CrossEncoder(str(folder), device="cpu").predict(
        [(GROUP.query, document) for document in documents], activation_fn=torch.nn.Identity(), show_progress_bar=False
    )
    exported = load_artefact(tmp_path / "out", None, 2)
    assert near(exported.score(exported.encode(GROUP.query, documents)), theirs.tolist(), 1e-4)


@pytest.mark.usefixtures("exports_here")
def test_without_a_setting_the_window_is_the_models(tmp_path: Path) -> None:
    CONFIGS["modernbert"].max_position_embeddings = 1024
    try:
        folder = make_model(tmp_path / "long", "modernbert", spread=0.2, window=1024)
    finally:
        CONFIGS["modernbert"].max_position_embeddings = 64
    settings: dict[str, Any] = UNMEASURED | {
        "model": str(folder),
        "export_dir": tmp_path / "store",
        "precision": "fp32",
    }
    documents = ["the moon and the gravity of the sea " * count for count in (5, 20, 70, 80, 200)]
    theirs = CrossEncoder(str(folder), device="cpu").predict(
        [(GROUP.query, document) for document in documents], activation_fn=torch.nn.Identity(), show_progress_bar=False
    )
    engine = load_engine(Settings(backend="openvino", **settings))
    assert (engine.info.max_length, engine.info.declared_length) == (1024, 1024)
    pairs = engine.encode(GROUP.query, documents)
    assert max(pair.length for pair in pairs) == 1024
    assert near(engine.score(pairs), theirs.tolist(), 1e-4)
    shorter = load_engine(Settings(backend="openvino", max_length=128, **settings))
    assert (shorter.info.max_length, shorter.info.declared_length) == (128, 1024)
    assert len(list((tmp_path / "store").glob("long-*/manifest.json"))) == 1


PEAK = """
import resource, sys
from pathlib import Path
from app.engines.load import load_artefact
engine = load_artefact(Path(sys.argv[1]), None, 1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
pairs = engine.encode("tides", ["the moon " * 4000])
engine.score(pairs)
print(pairs[0].length, peak() - before)
"""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_very_long_pair_does_not_need_memory_for_all_pairs_of_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(CONFIGS["bert"], "max_position_embeddings", 4096)
    monkeypatch.setattr(CONFIGS["bert"], "num_attention_heads", 8)
    model = make_model(tmp_path / "long", spread=0.3, window=4096)
    export(model, tmp_path / "out", precision=precision)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "out")]
    result = subprocess.run(command, cwd=EMBEDDED.parent.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    length, megabytes = map(int, result.stdout.split())
    assert length == 4096
    assert megabytes < 8 * 4096**2 * 4 / 1e6 / 4  # a quarter of the scores of one layer in float32


def test_the_window_can_be_smaller_than_in_the_export() -> None:
    engine = load_artefact(EMBEDDED / "openvino-int8", 64, 1)
    [pair] = engine.encode("tides", ["word " * 500])
    assert pair.length == engine.info.max_length == 64


def test_the_warm_up_measures_a_speed() -> None:
    assert load_artefact(EMBEDDED / "openvino-int8", 64, 1).warm_up() > 0


def test_the_service_does_not_import_torch_for_an_exported_model() -> None:
    code = (
        "import sys; from pathlib import Path; from app.engines.load import load_engine;"
        "from app.config import Settings;"
        f"settings = Settings(backend='openvino', precision='int8', **{UNMEASURED});"
        "import app.main, app.api.server; s = load_engine(settings); s.warm_up();"
        "sys.exit(bool({'torch', 'transformers', 'sentence_transformers', 'nncf'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=EMBEDDED.parent.parent, check=False).returncode == 0


def test_a_failed_compilation_stops_the_start_and_later_breaks_the_engine(tmp_path: Path) -> None:
    folder = shutil.copytree(EMBEDDED / "openvino-int8", tmp_path / "exported")
    engine = load_artefact(folder, 64, 1)
    (folder / "openvino_model.xml").unlink()
    with pytest.raises(StartupError, match="cannot be compiled"):
        engine.schedule = engine.schedule.model_copy(update={"streams": 2})
    with pytest.raises(EngineBroken, match="After a failed inference"):
        engine.score(engine.encode("what causes tides", ["the moon"]))


def test_an_export_is_served_from_its_folder(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED / "openvino-int8", tmp_path / "exported")
    settings = Settings(model=str(tmp_path / "exported"), precision="int8", export_dir=tmp_path / "store", **UNMEASURED)
    engine = load_engine(settings)
    assert engine.info.backend == "openvino"
    assert engine.info.model == "reranker-minilm-l6-v2"


@pytest.mark.parametrize("content", ["{}", "not json", '{"format": 2}'])
def test_a_manifest_of_another_version_is_rejected(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(StartupError, match="not an exported model that this version can read"):
        load_artefact(tmp_path, 512, 1)


def test_an_export_that_is_not_supported_is_rejected(tmp_path: Path) -> None:
    source = ModelSource("tiny", str(make_model(tmp_path / "tiny")), None, is_local=True)
    with pytest.raises(
        StartupError, match=r"cannot be exported for openvino fp16: .*openvino with fp16 is not supported$"
    ):
        find_or_export(source, "openvino", "fp16", tmp_path / "store")


@pytest.mark.usefixtures("exports_here")
def test_a_model_is_exported_once_and_reused(tmp_path: Path) -> None:
    source = ModelSource("tiny", str(make_model(tmp_path / "tiny")), None, is_local=True)
    first = find_or_export(source, "openvino", "fp32", tmp_path / "store")
    made = (first / "manifest.json").stat().st_mtime_ns
    assert find_or_export(source, "openvino", "fp32", tmp_path / "store") == first
    assert (first / "manifest.json").stat().st_mtime_ns == made
    make_model(tmp_path / "tiny", "electra")
    assert find_or_export(source, "openvino", "fp32", tmp_path / "store") != first


def test_two_processes_that_start_at_once_export_once(tmp_path: Path) -> None:
    model = make_model(tmp_path / "tiny")
    code = (
        "from app.engines.load import load_engine; from app.config import Settings;"
        "from pathlib import Path; import sys;"
        "s = load_engine(Settings(model=sys.argv[1], backend='openvino', precision='fp32', "
        f"export_dir=Path(sys.argv[2]), **{UNMEASURED}));"
        "print(s.info.backend)"
    )
    command = [sys.executable, "-c", code, str(model), str(tmp_path / "store")]
    starts = [
        subprocess.Popen(command, cwd=EMBEDDED.parent.parent, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [start.communicate()[0].strip() for start in starts] == ["openvino", "openvino"]
    assert len(list((tmp_path / "store").glob("tiny-openvino-fp32-*/manifest.json"))) == 1
    assert not list((tmp_path / "store").glob(".export-*"))


HOLD = """
import sys; from pathlib import Path; from app.engines.models.artefact import scratch_folder
with scratch_folder(Path(sys.argv[1])) as scratch:
    (scratch / "model").write_text("half")
    print(scratch, flush=True)
    sys.stdin.read()
"""


def hold_scratch_folder(target: Path) -> tuple[subprocess.Popen[str], Path]:
    """Another process that is exporting to this target, and its scratch folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(target)],
        cwd=EMBEDDED.parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_an_export_deletes_what_a_killed_one_left(tmp_path: Path) -> None:
    target = tmp_path / "artefact"
    process, left = hold_scratch_folder(target)
    process.kill()
    process.communicate()
    assert (left / "model").exists()
    with scratch_folder(target) as scratch:
        assert not list(scratch.iterdir())
        assert not left.exists()
    assert not list(tmp_path.iterdir())


def test_an_export_leaves_the_files_of_a_running_one(tmp_path: Path) -> None:
    target = tmp_path / "artefact"
    process, others = hold_scratch_folder(target)
    with scratch_folder(target) as scratch:
        assert scratch != others
        assert (others / "model").exists()
    assert (others / "model").exists()
    process.communicate()
    assert not list(tmp_path.iterdir())


def test_code_that_another_process_compiles_is_not_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that reads the file while another one writes it is killed by the kernel."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("app.engines.openvino_model.COMPILE_SECONDS", 0.1)
    folder, configuration, cache = EMBEDDED / "openvino-int8", Configuration("f32"), tmp_path / "compiled"

    def compile_it() -> list[Path]:
        compile_model(folder, Manifest.read(folder), 64, configuration, threads=1, cache=cache, streams=1)
        return list(cache.rglob("*.blob"))

    (cache / configuration.folder).mkdir(parents=True)
    with FileLock(cache / configuration.folder / "lock"):
        assert not compile_it()
    assert "Compiling without the cache" in caplog.text
    [blob] = compile_it()
    written = blob.stat()
    assert compile_it() == [blob]
    assert blob.stat().st_mtime_ns == written.st_mtime_ns


def test_an_export_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """Its standard input is closed when that process ends, even if it is killed."""
    model, output = make_model(tmp_path / "tiny"), tmp_path / "out"
    command = [sys.executable, "-m", "app.export", str(model), "--output", str(output), "--while-stdin-is-open"]
    ended = subprocess.run(
        command, cwd=EMBEDDED.parent.parent, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert (ended.returncode, b"Not exported" in ended.stderr) == (1, False), ended.stderr
    assert not output.exists()


def test_models_with_the_same_name_do_not_share_cached_scores(tmp_path: Path) -> None:
    fingerprints = set()
    for folder in ("a", "b"):
        make_model(tmp_path / folder / "model", spread=0.02 + len(fingerprints) / 100)
        settings = Settings(model=str(tmp_path / folder / "model"), backend="torch", export_dir=tmp_path / "store")
        fingerprints |= {load_engine(settings).info.fingerprint for _ in range(2)}
    assert len(fingerprints) == 2


@pytest.mark.parametrize("torch", ["missing", "without a GPU"])
def test_an_unusable_gpu_is_logged_and_the_cpu_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, torch: str
) -> None:
    monkeypatch.setattr("app.engines.load.has_gpu", lambda: True)
    if torch == "missing":
        monkeypatch.setattr("app.engines.load.find_spec", lambda _: None)
    assert load_engine(Settings(precision="int8", **UNMEASURED)).info.backend == "openvino"
    assert "This machine has a GPU" in caplog.text


def test_a_setting_that_needs_torch_logs_that_it_is_slower(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(model=str(make_model(tmp_path / "tiny")), precision="fp16", export_dir=tmp_path / "store")
    assert load_engine(settings).info.backend == "torch"
    assert "slower on a CPU than OpenVINO" in caplog.text


def test_a_failed_export_falls_back_to_torch_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engines.models.store.sys.executable", "false")
    settings = {"model": str(make_model(tmp_path / "tiny")), "export_dir": tmp_path / "store"}
    assert load_engine(Settings(**settings)).info.backend == "torch"
    assert "Falling back to torch" in caplog.text
    with pytest.raises(StartupError, match="tiny cannot be exported for openvino"):
        load_engine(Settings(backend="openvino", **settings))


@pytest.mark.parametrize("backend", ["auto", "openvino", "onnx"])
@pytest.mark.parametrize("store", ["/sys/reranker", "a file"])
def test_a_folder_that_cannot_be_written_stops_the_start_with_the_remedy(
    tmp_path: Path, store: str, backend: Any
) -> None:
    """As for an arbitrary user id and a volume of root. With torch the service would be slow, and nobody would know."""
    (tmp_path / "a file").touch()
    folder = tmp_path / store  # an absolute path stays as it is
    settings = Settings(model=str(make_model(tmp_path / "tiny")), export_dir=folder, backend=backend)
    with pytest.raises(UnwritableFolder) as raised:
        load_engine(settings)
    message = str(raised.value)
    assert message.startswith(f"RERANKER_EXPORT_DIR={folder} cannot be written by user {os.geteuid()}: ")
    assert message.endswith("Make the folder writable for this user, or set another one")


def failing(file: Path, reason: str, end: str = "exit 1") -> str:
    """Write a program that fails as an export does, to run instead of Python. Returns its path."""
    file.write_text(f"#!/bin/sh\necho 'Not exported: {reason}' >&2\n{end}\n")
    file.chmod(0o755)
    return str(file)


def test_an_export_that_failed_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = failing(tmp_path / "export", "it has the activation tanh")
    monkeypatch.setattr("app.engines.models.store.sys.executable", export)
    wanted = locate_model(str(make_model(tmp_path / "tanh")), None), "openvino", "fp32", tmp_path / "store"
    with pytest.raises(StartupError, match="activation tanh") as first:
        find_or_export(*wanted)
    with monkeypatch.context() as patch:
        patch.setattr("app.engines.models.store._export", lambda *_: pytest.fail("exported again"))
        with pytest.raises(
            StartupError, match=r"activation tanh.*at an earlier start; delete .* to try again"
        ) as second:
            find_or_export(*wanted)
    assert str(second.value).startswith(str(first.value))
    [record] = (tmp_path / "store").glob("*.failed")
    record.write_text(record.read_text().replace("torch ", "torch 1."))  # other versions may succeed
    with pytest.raises(StartupError, match="activation tanh") as third:
        find_or_export(*wanted)
    assert "earlier start" not in str(third.value)


def test_the_reason_of_a_failed_export_is_known_at_every_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / "tanh", activation="activation.Tanh")
    settings = Settings(model=str(folder), precision="fp32", export_dir=tmp_path / "store", **UNMEASURED)
    [reason] = load_engine(settings).info.failed_exports
    assert reason.startswith("tanh cannot be exported for openvino fp32: tanh has the activation tanh")
    monkeypatch.setattr("app.engines.models.store._export", lambda *_: pytest.fail("exported again"))
    engine = load_engine(settings)
    assert (engine.info.backend, engine.info.failed_exports) == ("torch", (reason,))


@pytest.mark.parametrize("reason", ["not enough memory", "No space left on device", "killed by signal 9"])
def test_an_export_that_failed_for_a_passing_reason_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    source, store = locate_model(str(make_model(tmp_path / "tiny")), None), tmp_path / "store"
    export = failing(tmp_path / "export", reason, "kill -9 $$" if "signal" in reason else "exit 1")
    with monkeypatch.context() as patch:
        patch.setattr("app.engines.models.store.sys.executable", export)
        for _ in range(2):
            with pytest.raises(StartupError, match=rf"tiny cannot be exported for openvino fp32: {reason}$"):
                find_or_export(source, "openvino", "fp32", store)
    assert failed_exports(source, store) == (f"tiny cannot be exported for openvino fp32: {reason}",)
    monkeypatch.setattr("app.engines.models.store._export", export_here)
    find_or_export(source, "openvino", "fp32", store)
    assert failed_exports(source, store) == ()


def test_an_unusable_model_is_rejected_without_a_fallback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UnusableModel, match="no relevance head"):
        load_engine(Settings(model=str(make_bi_encoder(tmp_path / "bi")), export_dir=tmp_path / "store"))
    assert "Falling back to torch" not in caplog.text


def test_a_pickle_is_exported_only_if_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"model": str(pickled(make_model(tmp_path / "old"))), "export_dir": tmp_path / "store"}
    settings |= UNMEASURED | {"backend": "openvino", "precision": "fp32"}
    with pytest.raises(UnusableModel, match="RERANKER_ALLOW_PICKLE"):
        export_model(str(settings["model"]), "openvino", "fp32", tmp_path / "out")
    monkeypatch.setenv("RERANKER_ALLOW_PICKLE", "true")  # the export's own process reads it
    assert load_engine(Settings(**settings)).info.backend == "openvino"


def test_an_export_that_ranks_differently_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / "tiny")
    monkeypatch.setattr("app.export.parity._kendall_tau", lambda *_: 0.5)
    with pytest.raises(StartupError, match=r"ranks differently: Kendall tau 0\.500 < 0\.95"):
        export(folder, tmp_path / "out", force=False)
    assert not (tmp_path / "out").exists()
    export(folder, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(StartupError, match="exists already"):
        export(folder, tmp_path / "out", force=False)


def test_a_labelled_file_gives_the_difference_in_ndcg(tmp_path: Path) -> None:
    rows = [
        {
            "query": GROUP.query,
            "documents": [{"id": str(index), "text": text} for index, text in enumerate(GROUP.documents)],
            "qrels": {"0": 2, "3": 1},
        }
    ]
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text("\n".join(map(json.dumps, rows)))
    folder = make_model(tmp_path / "tiny")
    manifest = export(folder, tmp_path / "out", evaluation=labelled)
    assert manifest.parity is not None
    assert manifest.parity.ndcg_difference == pytest.approx(0, abs=1e-6)
    assert ndcg([2, 0, 1], [3.0, 1.0, 2.0]) == pytest.approx(1)
    assert ndcg([2, 0, 1], [1.0, 3.0, 2.0]) < 0.8


@pytest.mark.parametrize(
    "arguments", [["--backend", "tpu"], ["--backend", "onnx", "--precision", "bf16"], ["--precision", "int4"]]
)
def test_the_command_line_rejects_unsupported_options(tmp_path: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "app.export", "--output", str(tmp_path / "out"), *arguments]
    result = subprocess.run(command, cwd=EMBEDDED.parent.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "is not supported" in result.stderr


def test_the_command_line_reports_a_failure_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app.export", "/no/such/model", "--output", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=EMBEDDED.parent.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "no such folder" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "openvino", "device": "cuda"}, "runs on the CPU"),
        ({"backend": "torch", "precision": "int8"}, "RERANKER_PRECISION=int8 needs"),
        ({"backend": "onnx", "device": "cuda", "precision": "fp32"}, "onnxruntime-gpu"),
    ],
)
def test_impossible_combinations_are_rejected(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    model = str(make_model(tmp_path / "tiny"))
    with pytest.raises(StartupError, match=message):
        load_engine(Settings(model=model, export_dir=tmp_path / "store", **settings))
    assert not (tmp_path / "store").exists(), "exported before the refusal, which takes minutes"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda"}, "RERANKER_DEVICE=cuda: .*openvino-int8 is an export for OpenVINO, which runs on the CPU"),
        ({"backend": "torch"}, "RERANKER_BACKEND=torch: .*openvino-int8 is an export for openvino"),
        ({"backend": "onnx"}, "set RERANKER_MODEL to the original model"),
    ],
)
def test_an_export_runs_on_its_own_engine_only(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        load_engine(Settings(model=str(EMBEDDED / "openvino-int8"), export_dir=tmp_path, **settings))


def test_another_precision_than_that_of_the_export_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(model=str(EMBEDDED / "openvino-int8"), precision="bf16", export_dir=tmp_path, **UNMEASURED)
    assert load_engine(settings).info.precision == "int8"
    assert "RERANKER_PRECISION=bf16 has no effect" in caplog.text


@pytest.mark.parametrize(
    ("features", "backend", "precisions"),
    [
        ({"avx512_vnni", "avx512_bf16"}, "openvino", ["int8", "bf16"]),
        ({"avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"}, "openvino", ["bf16", "int8"]),
        ({"avx_vnni"}, "openvino", ["int8", "fp32"]),
        ({"avx2"}, "openvino", ["fp32", "int8"]),
        ({"amx_int8"}, "onnx", ["int8", "fp32"]),
        ({"avx2"}, "onnx", ["fp32", "int8"]),
    ],
)
def test_the_precision_that_is_tried_first_follows_the_cpu(
    monkeypatch: pytest.MonkeyPatch, features: Any, backend: Any, precisions: list[str]
) -> None:
    monkeypatch.setattr("app.engines.load.cpu_features", lambda: features)
    assert cpu_precisions(backend) == precisions


@pytest.mark.parametrize("backend", ["openvino", "onnx"])
def test_memory_stays_flat_over_requests_of_random_shapes(tmp_path: Path, backend: Any) -> None:
    export(make_model(tmp_path / "tiny"), tmp_path / "out", backend)
    code = (
        "import random, sys; from pathlib import Path; from app.engines.load import load_artefact;"
        "s = load_artefact(Path(sys.argv[1]), 64, 2); r = random.Random(1);"
        "rss = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096 / 1e6;"
        "make = lambda: s.encode('tides', ['moon ' * r.randint(0, 80) for _ in range(r.randint(1, 6))]);"
        "some = lambda count: [s.score(make()) for _ in range(count)];"
        "some(1500); before = rss(); some(2500); print(rss() - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    result = subprocess.run(command, cwd=EMBEDDED.parent.parent, capture_output=True, text=True, check=True)
    assert float(result.stdout) < 2.5


def test_judged_queries_may_be_compressed_and_bad_files_give_short_errors(tmp_path: Path) -> None:
    row = {"query": "what causes tides", "documents": [{"id": "a", "text": "the moon"}], "qrels": {"a": 2}}
    file = tmp_path / "judged.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(row).encode()))
    assert read_groups(file) == [Group("what causes tides", ["the moon"], [2.0])]
    damaged = file.rename(tmp_path / "judged.jsonl")
    with pytest.raises(UnusableCollection, match=r"judged\.jsonl: not valid UTF-8") as raised:
        read_groups(damaged)
    assert len(str(raised.value)) < 300
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UnusableCollection, match=r"empty\.jsonl: contains no queries"):
        read_groups(tmp_path / "empty.jsonl")
    found = subprocess.run(
        [sys.executable, "-m", "app.export", "--output", str(tmp_path / "out"), "--calibration", str(damaged)],
        cwd=EMBEDDED.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1].startswith(f"Not exported: {damaged}: not valid UTF-8")


def rounded(folder: Path) -> int:
    """How many products of an ONNX export are of integers."""
    return [node.op_type for node in onnx.load(str(folder / "model.onnx")).graph.node].count("MatMulInteger")


def test_an_export_that_ranks_differently_is_repeated_with_more_float_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = make_model(tmp_path / "bert", spread=0.4)
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"query": GROUP.query, "documents": GROUP.documents}))

    def export(output: str, force: bool) -> Manifest:
        return export_model(
            str(folder), "onnx", "int8", tmp_path / output, calibration=texts, evaluation=texts, force=force
        )

    first = export("first", force=False)
    monkeypatch.setattr("app.export.command.MIN_KENDALL_TAU", 1.01)
    with pytest.raises(StartupError, match=r"Kendall tau 1\.000 < 1\.01\. To keep it anyway, use --force"):
        export("refused", force=False)
    assert not (tmp_path / "refused").exists()
    second = export("second", force=True)
    assert (first.float_layers, second.float_layers) == (0, 3)
    assert 0 < rounded(tmp_path / "second") < rounded(tmp_path / "first")
    assert "ranks differently: Kendall tau" in " ".join(capfd.readouterr().err.split())


def test_settings_reach_the_engine(tmp_path: Path) -> None:
    settings = Settings(
        backend="openvino",
        precision="int8",
        export_dir=tmp_path,
        streams=1,
        part_tokens=64,
        batch_tokens=128,
        threads=2,
    )
    engine = load_engine(settings)
    assert engine.schedule == Schedule(batch_tokens=128, streams=1, part_tokens=64)
    assert not (tmp_path / "schedules").exists()


def test_every_schedule_gives_the_same_scores(tmp_path: Path) -> None:
    engine = load_artefact(EMBEDDED / "openvino-int8", None, 2)
    assert isinstance(engine, OpenVinoEngine)
    pairs = engine.encode("what causes tides", ["the moon " * count for count in (1, 5, 30, 90, 200)])
    expected = engine.score(pairs)
    for schedule in (
        Schedule(batch_tokens=1024, streams=1, part_tokens=256),
        Schedule(batch_tokens=1024, streams=2, part_tokens=1024),
    ):
        engine.schedule = schedule
        # int8 and bf16 round differently for other shapes
        assert engine.score(pairs) == pytest.approx(expected, abs=0.15)


def test_a_batch_beside_one_that_failed_is_scored_on_new_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed inference breaks the streams of all batches."""
    engine = load_artefact(EMBEDDED / "openvino-int8", None, 2)
    assert isinstance(engine, OpenVinoEngine)
    pairs = engine.encode("what causes tides", ["moon", "the moon " * 30, "the sea " * 60, "bread " * 90])
    expected, pad, padded = engine.score(pairs), engine._pad, []

    def pad_and_break(rows: Any) -> Any:
        padded.append(rows)
        if len(padded) == 1:
            assert engine._streams is not None
            engine._streams.broken = True
        return pad(rows)

    monkeypatch.setattr(engine, "_pad", pad_and_break)
    assert engine.score(pairs) == expected
    assert len(padded) > len(pairs)


@pytest.mark.parametrize(("features", "expected"), [({"avx512_bf16"}, True), ({"avx512_bf16", "amx_bf16"}, False)])
def test_float32_arithmetic_is_measured_unless_the_cpu_has_amx(
    monkeypatch: pytest.MonkeyPatch, features: set[str], expected: bool
) -> None:
    """bf16 instructions without AMX can be slower than those for float32."""
    monkeypatch.setattr("app.engines.load.cpu_features", lambda: features)
    monkeypatch.setattr("app.engines.openvino_model._capabilities", lambda _: ["BF16"])
    candidates = _candidates(locate_model(None, None), Settings(backend="openvino", precision="bf16"))
    measured = {candidate.name: candidate.is_measured for candidate in candidates}
    assert measured["openvino bf16, bf16 arithmetic"]
    assert measured["openvino bf16, f32 arithmetic"] is expected

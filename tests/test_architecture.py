"""The direction of the imports: who may know of whom."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

APP = Path(__file__).parent.parent / "app"
MODULES = {
    ".".join(path.relative_to(APP.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in APP.rglob("*.py")
}
# Nearer to the outside first: a module may import from its own row and from rows below.
LAYERS = [
    {"app.cli", "app.export.__main__"},
    {"app.__main__"},
    {"app.evaluation.command"},
    {"app.main", "app.api.server", "app.export.command"},
    {"app.api.connections"},
    {"app.export.convert", "app.export.parity"},
    {"app.export.first_token"},
    {"app.evaluation.collection", "app.evaluation.measures", "app.evaluation.chart"},
    {"app.api"},
    {"app.serving.reranker"},
    {"app.serving.ranking", "app.serving.windows"},
    {"app.serving.heartbeat", "app.serving.supervisor"},
    {
        "app.serving.batcher",
        "app.serving.cache",
        "app.serving.admission",
        "app.serving.shared_cache",
        "app.first_stage.prefilter",
    },
    {
        "app.first_stage.lexical",
        "app.first_stage.embeddings",
        "app.first_stage.sentence_embeddings",
        "app.serving.queues",
    },
    {"app.engines"},
    {"app.telemetry.metrics", "app.config", "app.engines.tokenization", "app.first_stage.words"},
    {
        "app.serving.lifecycle",
        "app.export",
        "app.evaluation",
        "app.serving",
        "app.first_stage",
        "app.telemetry",
        "app.machine",
        "app.telemetry.logs",
        "app.machine.hardware",
        "app.machine.threads",
        "app.telemetry.tracing",
        "app.machine.gpu",
    },
    {"app.errors"},
    {"app"},
]
HEAVY = {"torch", "transformers", "sentence_transformers"}


def layer(module: str) -> int:
    parts = module.split(".")
    prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    return next(row for prefix in prefixes for row, names in enumerate(LAYERS) if prefix in names)


def imports(path: Path) -> Iterator[str]:
    """Modules imported at run time, at any depth of the file; those for type checking only do not count."""
    tree = ast.parse(path.read_text())
    checking = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in checking:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in names)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    wrong = [name for name in imports(MODULES[module]) if name.startswith("app") and layer(name) < layer(module)]
    assert wrong == []


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_in_their_rooms(module: str) -> None:
    roots = {name.split(".")[0] for name in imports(MODULES[module])}
    if module not in ("app.main", "app.api.server", "app.api.connections") and not module.startswith("app.api"):
        assert not roots & {"fastapi", "starlette"}
    if module not in (
        "app.engines.torch",
        "app.engines.checkpoint",
        "app.engines.packing",
        "app.engines.preprocessing",
        "app.first_stage.sentence_embeddings",
        "app.export.convert",
    ):
        assert not roots & HEAVY
    if module not in ("app.main", "app.__main__", "app.engines.load", "app.export.command", "app.evaluation.command"):
        assert "app.config" not in imports(MODULES[module]), (
            "only the composition, the engine factory, the export and the evaluation see Settings"
        )


def test_only_settings_read_the_environment() -> None:
    readers = {
        name for name, path in MODULES.items() if "os.environ" in path.read_text() or "getenv" in path.read_text()
    }
    assert readers == {"app.config"}


def test_functions_stay_short() -> None:
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{name}.{node.name}"  # type: ignore[operator]

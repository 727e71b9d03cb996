"""The order of the packages, and who may know of whom."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

APP = Path(__file__).parent.parent / "app"
MODULES = {
    ".".join(path.relative_to(APP.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in APP.rglob("*.py")
}
# The outermost first: a module may import from its own row and from the rows below.
LAYERS = [
    {"app.__main__", "app.cli"},
    {"app.bulk", "app.deployment", "app.evaluation", "app.export", "app.planning"},
    {"app.main"},
    {"app.api"},
    {"app.serving"},
    {"app.engines", "app.first_stage"},
    {"app.config", "app.config_keys", "app.config_names", "app.config_types", "app.telemetry"},
    {"app.machine", "app.types"},
    {"app.errors"},
    {"app"},
]
HEAVY = {"torch", "transformers", "sentence_transformers"}


def layer(module: str) -> int:
    parts = module.split(".")
    prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    return next(row for prefix in prefixes for row, names in enumerate(LAYERS) if prefix in names)


def imports(path: Path) -> Iterator[str]:
    """Modules imported anywhere in the file, those for type checking included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in names)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    wrong = [name for name in imports(MODULES[module]) if name.startswith("app") and layer(name) < layer(module)]
    assert wrong == []


def package(module: str) -> str:
    """The package or module below `app` that a module belongs to."""
    return ".".join(module.split(".")[:2])


def test_packages_do_not_import_each_other_in_a_circle() -> None:
    known = {
        (package(module), package(name))
        for module, path in MODULES.items()
        for name in imports(path)
        if name.startswith("app.") and package(name) != package(module)
    }
    remaining = {name for pair in known for name in pair}
    while free := {name for name in remaining if not any(a == name and b in remaining for a, b in known)}:
        remaining -= free
    assert remaining == set()


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_in_their_packages(module: str) -> None:
    roots = {name.split(".")[0] for name in imports(MODULES[module])}
    if module != "app.main" and not module.startswith(("app.api", "app.telemetry.tracing")):
        assert not roots & {"fastapi", "starlette"}
    if not module.startswith(("app.engines", "app.export", "app.first_stage.sentence_embeddings")):
        assert not roots & HEAVY
    roots_of_settings = ("app.main", "app.__main__", "app.bulk.cluster", "app.deployment.ray_serve")
    if module not in (*roots_of_settings, "app.engines.load", "app.export.command", "app.evaluation.service"):
        assert "app.config" not in imports(MODULES[module]), (
            "only the composition, the entry points, the engine factory, the export and the evaluation see Settings"
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


def test_modules_stay_short() -> None:
    assert [name for name, path in MODULES.items() if len(path.read_text().splitlines()) > 300] == []

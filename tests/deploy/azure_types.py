"""What Azure's APIs accept, read from the models in the Azure SDK without importing it.

The SDK's classes name the properties of resources in one of two ways: `rest_field(name=…)`, or `_attribute_map`.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any


@dataclass
class Model:
    bases: list[str]
    fields: dict[str, str] = field(default_factory=dict)  # JSON name -> annotation
    required: set[str] = field(default_factory=set)
    read_only: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Package:
    """One API version of one service."""

    folder: Path

    @cached_property
    def operations(self) -> str:
        return "\n".join(file.read_text() for file in sorted((self.folder / "operations").glob("*.py")))

    @cached_property
    def sources(self) -> dict[str, str]:
        """The source of each class. To parse all of them takes seconds."""
        files = [file for file in sorted((self.folder / "models").glob("_*.py")) if file.name != "_patch.py"]
        parts = [part for file in files for part in re.split(r"^(?=class )", file.read_text(), flags=re.MULTILINE)]
        return {found[1]: part for part in parts if (found := re.match(r"class (\w+)", part))}

    @cached_property
    def children(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, source in self.sources.items():
            for base in re.findall(r"[\w.]+", source.partition("(")[2].partition("):")[0]):
                found.setdefault(base.rpartition(".")[2], []).append(name)
        return found

    def node(self, name: str) -> ast.ClassDef:
        [node] = [node for node in ast.parse(self.sources[name]).body if isinstance(node, ast.ClassDef)]
        return node

    def offers(self, kind: str, version: str) -> bool:
        """Whether there is an operation on resources of the type `kind` in this API version."""
        provider, *types = kind.split("/")
        parts = [rf"(?:{re.escape(part)}|\{{recordType\}})/\{{\w+\}}" for part in types]
        path = rf"/providers/{re.escape(provider)}/{'/'.join(parts)}\""
        return bool(re.search(path, self.operations, re.IGNORECASE)) and f'"{version}"' in self.operations

    def model(self, name: str) -> Model:
        """With the fields of its bases."""
        node = self.node(name)
        model = Model([ast.unparse(base).rpartition(".")[2] for base in node.bases])
        for base in filter(self.sources.__contains__, model.bases):
            self._add(model, self.model(base))
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Call):
                _read_field(model, statement)
            elif isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "_attribute_map":
                for entry in ast.literal_eval(statement.value).values():
                    model.fields[entry["key"].replace("\\\\.", ".")] = entry["type"]
        return model

    def _add(self, model: Model, other: Model) -> None:
        model.fields |= other.fields
        model.required |= other.required
        model.read_only |= other.read_only

    def _any_of(self, name: str) -> Model:
        """A model, or one of those derived from it."""
        model = self.model(name)
        for child in self.children.get(name, []):
            derived = self._any_of(child)
            model.fields |= derived.fields
        return model

    def problems(self, name: str, value: Any, path: str = "") -> Iterator[str]:
        """What of a body the model does not accept."""
        model = self._any_of(name)
        yield from _object_problems(self, model, value, path)

    def value_problems(self, annotation: str, value: Any, path: str) -> Iterator[str]:
        if isinstance(value, dict) and "$" in value:
            return
        if isinstance(value, dict) and not {"$any", "$concat"}.isdisjoint(value):
            [choices] = value.values()
            for choice in choices:
                yield from self.value_problems(annotation, choice, path)
        elif item := re.match(r"(?:list\[|List\[|\[)(.+)\]$", annotation):
            if not isinstance(value, list):
                yield f"{path}: not an array"
                return
            for number, part in enumerate(value):
                yield from self.value_problems(item[1], part, f"{path}[{number}]")
        elif item := re.match(r"(?:dict\[str, |Dict\[str, |\{)(.+)[\]}]$", annotation):
            for key, part in value.items() if isinstance(value, dict) else ():
                yield from self.value_problems(item[1], part, f"{path}.{key}")
        else:
            yield from self._single_problems(annotation, value, path)

    def _single_problems(self, annotation: str, value: Any, path: str) -> Iterator[str]:
        name = annotation.rpartition("_models.")[2].strip("]'")
        if "Enum" in self.sources.get(name, "").partition("):")[0]:
            values = [ast.literal_eval(n.value) for n in self.node(name).body if isinstance(n, ast.Assign)]
            if value not in values:
                yield f"{path}: {value!r} is not one of {values}"
        elif name in self.sources:
            yield from self.problems(name, value, path)
        elif annotation == "bool" and not isinstance(value, bool):
            yield f"{path}: {value!r} is not a boolean"
        elif annotation == "int" and (not isinstance(value, int) or isinstance(value, bool)):
            yield f"{path}: {value!r} is not a number"
        elif annotation == "str" and not isinstance(value, str):
            yield f"{path}: {value!r} is not a text"


def _read_field(model: Model, statement: ast.AnnAssign) -> None:
    assert isinstance(statement.value, ast.Call)
    options = {option.arg: ast.unparse(option.value) for option in statement.value.keywords}
    name = ast.literal_eval(options["name"]) if "name" in options else ast.unparse(statement.target)
    annotation = ast.unparse(statement.annotation)
    optional = re.match(r"Optional\[(.+)\]$", annotation)
    model.fields[name] = re.sub(r"Union\[str, ('_models\.\w+')\]", r"\1", optional[1] if optional else annotation)
    if options.get("visibility") == "['read']":
        model.read_only.add(name)
    elif not optional:
        model.required.add(name)


def _object_problems(package: Package, model: Model, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: not an object"
        return
    known = {name.partition(".")[0] for name in model.fields}
    yield from (f"{path}.{name}: unknown" for name in value if name not in known)
    yield from (f"{path}.{name}: read-only" for name in value if name in model.read_only)
    yield from (f"{path}.{name}: missing" for name in sorted(model.required - value.keys()))
    for name, part in value.items():
        if name in model.fields:
            yield from package.value_problems(model.fields[name], part, f"{path}.{name}")
        elif name in known:  # the SDK merges the inner object into the outer one
            inner = {key.partition(".")[2]: kind for key, kind in model.fields.items() if key.startswith(f"{name}.")}
            yield from _object_problems(package, Model([], inner), part, f"{path}.{name}")

"""Read Bicep files with two parsers: tree-sitter, which says what is in them, and pycep, which is that of checkov.

Reads paths from the arguments and prints what they contain as JSON. Runs in the environment of tests/deploy/azure.py.
A value is as in JSON. An expression that is not a value is `{"$": its text}`, and `a ? b : c` is `{"$any": [b, c]}`;
`concat(a, b)` is `{"$concat": [a, b]}`. Variables are replaced by their values, and a loop is one of its turns.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pycep  # type: ignore[import-not-found, unused-ignore]
import tree_sitter_bicep  # type: ignore[import-not-found, unused-ignore]
from tree_sitter import Language, Node, Parser  # type: ignore[import-not-found, unused-ignore]

PARSER = Parser(Language(tree_sitter_bicep.language()))
BODIES = {"object", "if_statement", "for_statement"}


def text(node: Node) -> str:
    return str(node.text.decode())


def walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from walk(child)


class File:
    def __init__(self, path: Path) -> None:
        source = path.read_text()
        if path.suffix == ".bicepparam":  # the grammar has no assignments of parameters
            source = re.sub(r"^param (?=\w+ =)", "var ", source, flags=re.MULTILINE)
        root = PARSER.parse(source.encode()).root_node
        self.errors = [f"line {n.start_point.row + 1}" for n in walk(root) if n.type == "ERROR" or n.is_missing]
        if path.suffix == ".bicep":
            try:
                pycep.BicepParser().parse(text=source)
            except Exception as error:
                self.errors.append(f"pycep: {error}")
        self.root = root
        self.variables = {text(n.named_children[0]): n.named_children[-1] for n in self.all("variable_declaration")}

    def all(self, kind: str) -> list[Node]:
        return [node for node in self.root.children if node.type == kind]

    def value(self, node: Node) -> Any:
        children = [child for child in node.named_children if child.type != "comment"]
        found: Any = {"$": text(node)}
        match node.type:
            case "object":
                pairs = [child.named_children for child in children if child.type == "object_property"]
                found = {self.key(key): self.value(value) for key, value in pairs}
            case "array":
                found = [self.value(child) for child in children]
            case "string" if not any(child.type == "interpolation" for child in children):
                found = "".join(map(text, children))
            case "number":
                found = int(text(node))
            case "boolean":
                found = text(node) == "true"
            case "ternary_expression":
                found = {"$any": [self.value(child) for child in children[1:]]}
            case "call_expression" if text(children[0]) == "concat":
                found = {"$concat": [self.value(child) for child in children[1].named_children]}
            case "identifier" if text(node) in self.variables:
                found = self.value(self.variables[text(node)])
            case "if_statement":
                found = self.value(children[-1])
            case "for_statement":
                found = [self.value(children[-1])]
        return found

    def key(self, node: Node) -> str:
        return text(node).strip("'")

    def parameters(self) -> dict[str, Any]:
        found, decorators = {}, []
        for node in self.root.children:
            if node.type == "decorators":
                decorators = [child.named_children[0].named_children for child in node.named_children]
            elif node.type == "parameter_declaration":
                name = text(node.named_children[0])
                told = {text(call[0]): [self.value(v) for v in call[1].named_children] for call in decorators}
                default = [self.value(child) for child in node.named_children[2:]]
                found[name] = {"type": text(node.named_children[1]), "default": default, **told}
            if node.type != "decorators":
                decorators = []
        return found

    def declared(self, kind: str) -> dict[str, Any]:
        """The resources or the modules, by symbol."""
        found = {}
        for node in self.all(kind):
            symbol, what, *_ = node.named_children
            body = next(child for child in node.named_children if child.type in BODIES)
            found[text(symbol)] = {
                "what": text(what).strip("'"),
                "existing": any(text(child) == "existing" for child in node.children),
                "body": self.value(body.named_children[-1] if body.type == "for_statement" else body),
            }
        return found

    def names_used(self) -> list[str]:
        """All names, except for keys of objects and names of functions."""
        firsts = [n.named_children[0].id for n in walk(self.root) if n.type in ("object_property", "call_expression")]
        return [text(node) for node in walk(self.root) if node.type == "identifier" and node.id not in firsts]

    def unknown(self) -> list[str]:
        """Names that nothing declares: neither the file, nor a loop, nor a lambda expression around them."""
        scopes = [n for n in walk(self.root) if n.type in ("for_statement", "lambda_expression")]
        declarations = [node for node in self.root.children if node.type.endswith("_declaration")]
        return sorted(set(self.names_used()) - {text(node.named_children[0]) for node in [*scopes, *declarations]})

    def unused(self) -> list[str]:
        """Parameters and variables that are only declared."""
        declared = [text(node.named_children[0]) for node in self.all("parameter_declaration")]
        used = self.names_used()
        return [name for name in [*declared, *self.variables] if used.count(name) < 2]

    def outputs_used(self) -> list[list[str]]:
        members = (text(node) for node in walk(self.root) if node.type == "member_expression")
        return [
            found[0].split(".outputs.") for member in members if (found := re.match(r"^\w+\.outputs\.\w+$", member))
        ]

    def contents(self) -> dict[str, Any]:
        if using := self.all("using_statement"):
            return {"errors": self.errors, "using": text(using[0].named_children[0]).strip("'")} | {
                "values": {name: self.value(node) for name, node in self.variables.items()}
            }
        return {
            "errors": self.errors,
            "parameters": self.parameters(),
            "variables": {name: self.value(node) for name, node in self.variables.items()},
            "resources": self.declared("resource_declaration"),
            "modules": self.declared("module_declaration"),
            "outputs": [text(node.named_children[0]) for node in self.all("output_declaration")],
            "outputs_used": self.outputs_used(),
            "unknown": self.unknown(),
            "unused": self.unused(),
        }


if __name__ == "__main__":
    print(json.dumps({path: File(Path(path)).contents() for path in sys.argv[1:]}))

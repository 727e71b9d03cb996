"""Find wording that is not plain English: `python -m tools.words [FOLDER …]` prints file, line and the words.

Reads strings and comments of Python files, and all lines of documentation, shell scripts and deployment files. A line
that needs such a word ends with "words: ok".
"""

import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHON = ("app", "benchmarks", "reranker_client", "tools", "training")
TEXT = ("*.md", "docs/*.md", "training/*.md", "reranker_client/*.md", "Dockerfile*", "*.yaml", "*.sh", "scripts/*")
DEPLOYMENT = ("docker/*.sh", "docker/nginx/*", "docker/haproxy/*", "docker/monitoring/*.yml", "deploy/**/*.*")
EXCLUDED = {"tools/words.py", "CHANGELOG.md"}
ALLOWED = "words: ok"
TEXT_TOKENS = {"COMMENT", "STRING", "FSTRING_MIDDLE"}
WORDS = re.compile(
    r"""\b(?:
        anew | in\ vain | for\ ever | as\ ever | surely | shall | all\ the\ same | to\ be\ had
      | tells? | told | whose | thereof | beside | but\ for | wherever | of\ its\ own | of\ our\ own
      | that\ there\ (?:is|are|was|were)
      | (?<!there\ )(?:is|are)\ (?-i:none) | there\ are\ none
      | (?<!there\ )(?:is|are|was|were)\ no\ (?!longer\b|more\b|less\b|\w+er\b)\w+
      | gave\ up | not\ begun | what\ (?:is|are|was|cannot|has)\ \w+\ is
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)


def found(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and words of one file."""
    lines = path.read_text().splitlines()
    for number, text in _python(path) if path.suffix == ".py" else enumerate(lines, 1):
        for match in WORDS.finditer(text):
            line = number + text.count("\n", 0, match.start())
            if ALLOWED not in lines[line - 1]:
                yield line, " ".join(match[0].split())


def _python(path: Path) -> Iterator[tuple[int, str]]:
    """First line and text of each string and comment."""
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if tokenize.tok_name[token.type] in TEXT_TOKENS:
                yield token.start[0], token.string


def files() -> list[Path]:
    """All files to read, sorted."""
    chosen = {path for folder in PYTHON for path in (ROOT / folder).rglob("*.py") if ".work" not in path.parts}
    chosen.update(path for pattern in (*TEXT, *DEPLOYMENT) for path in ROOT.glob(pattern) if path.is_file())
    return sorted(path for path in chosen if str(path.relative_to(ROOT)) not in EXCLUDED)


def main(folders: list[str]) -> int:
    """Exit status 1 if there are findings below the folders; without folders, in the whole repository."""
    count = 0
    for path in files():
        name = str(path.relative_to(ROOT))
        if folders and not name.startswith(tuple(folders)):
            continue
        for line, words in found(path):
            print(f"{name}:{line}: {words}")
            count += 1
    if count:
        print(f"{count} phrases are not plain English; see CONTRIBUTING.md", file=sys.stderr)
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

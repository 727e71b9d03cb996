"""The check for wording that is not plain English."""

from pathlib import Path

from tools import words


def test_strings_and_comments_of_python_are_read(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text('whose = 1  # in vain\nx = f"""one\n  told {limit}\n"""\ny = "beside"  # words: ok\n')
    assert list(words.found(file)) == [(1, "in vain"), (3, "told")]


def test_all_lines_of_other_files_are_read(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("It is no probability.\nThere is no limit, it is no longer set.\nIt surely is.\n")
    assert list(words.found(file)) == [(1, "is no probability"), (3, "surely")]


def test_every_folder_with_text_for_people_is_read() -> None:
    names = {str(path.relative_to(words.ROOT)) for path in words.files()}
    assert names >= {"app/config.py", "README.md", "docs/configuration.md", "scripts/check", "docker/nginx/nginx.conf"}
    assert "docker/haproxy/haproxy.cfg" in names
    assert not any(name.startswith((".venv", "tests/")) for name in names)

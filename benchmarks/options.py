"""Options of the benchmarks."""

import typer


def numbers(option: str, text: str) -> list[int]:
    """The comma-separated numbers of an option. Raises `BadParameter` unless all are 1 or more."""
    try:
        found = [int(each) for each in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise typer.BadParameter(f"{text!r} must be numbers of 1 or more, such as 10,20", param_hint=f"--{option}")
    return found

"""Weights that a model's class needs and its files lack. transformers fills them with random numbers and only warns."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import modeling_utils


@contextmanager
def missing_weights() -> Iterator[set[str]]:
    """Collects the names of missing weights while a model is loaded in this block."""
    found: set[str] = set()
    report = modeling_utils.log_state_dict_report

    def noted(*args: Any, loading_info: Any, **options: Any) -> None:
        found.update(loading_info.missing_keys)
        report(*args, loading_info=loading_info, **options)

    # There is no public way: `output_loading_info` changes the result that sentence-transformers expects.
    modeling_utils.log_state_dict_report = noted
    try:
        yield found
    finally:
        modeling_utils.log_state_dict_report = report

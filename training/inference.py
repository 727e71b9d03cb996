"""Fast inference: OpenVINO on CPUs, torch in bfloat16 on GPUs."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from app.engines.tokenization import OVERLAP
from training.model import fast_dtype

Floats = npt.NDArray[np.float32]
Batch = Mapping[str, npt.NDArray[np.int64]]
Run = Callable[[Batch], Floats]

# Lengths are padded to multiples of this, because engines compile code for each new shape.
STEP = 32
TOKENS_AT_ONCE = 8192


def fast(model: Any, names: Sequence[str], device: str) -> Run:
    """A function that returns the first output of the model for a batch with these inputs."""
    return _compiled(model.eval(), names) if device == "cpu" else _on_gpu(model.eval(), device)


def in_batches(tokenizer: Any, encoded: Sequence[Mapping[str, Sequence[int]]], run: Run) -> Floats:
    """Apply `run` to all texts in batches of similar length; shape (texts, ...)."""
    order = sorted(range(len(encoded)), key=lambda at: len(encoded[at]["input_ids"]))
    parts = []
    for rows in _batches(order, [len(each["input_ids"]) for each in encoded]):
        longest = -(-len(encoded[rows[-1]]["input_ids"]) // STEP) * STEP
        batch = tokenizer.pad(
            [encoded[at] for at in rows], padding="max_length", max_length=longest, return_tensors="np"
        )
        parts.append(run(batch))
    return np.asarray(np.concatenate(parts)[np.argsort(order)], np.float32)


def encoded(tokenizer: Any, texts: Sequence[Any], max_length: int) -> list[dict[str, list[int]]]:
    """Tokenize texts or pairs of texts. Of a pair that is too long, the longer text is truncated."""
    first, second = zip(*texts, strict=True) if isinstance(texts[0], tuple) else (texts, None)
    tokens = tokenizer(list(first), second and list(second), truncation="longest_first", max_length=max_length)
    return [{name: tokens[name][at] for name in tokens} for at in range(len(texts))]


def encoded_windows(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], max_length: int
) -> tuple[list[dict[str, list[int]]], list[int]]:
    """Tokens of every window of each document, with the query, and the index of the pair that each belongs to."""
    queries, documents = zip(*pairs, strict=True)
    tokens = tokenizer(
        list(queries),
        list(documents),
        truncation="only_second",
        max_length=max_length,
        stride=max_length // OVERLAP,
        return_overflowing_tokens=True,
    )
    pair_of: list[int] = tokens.pop("overflow_to_sample_mapping")
    return [{name: tokens[name][at] for name in tokens} for at in range(len(pair_of))], pair_of


def _batches(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Split `order`, which is sorted by length, into batches of about TOKENS_AT_ONCE tokens."""
    batches: list[list[int]] = [[]]
    for at in order:
        if (len(batches[-1]) + 1) * lengths[at] > TOKENS_AT_ONCE:
            batches.append([])
        batches[-1].append(at)
    return [batch for batch in batches if batch]


def _compiled(model: Any, names: Sequence[str]) -> Run:
    import openvino

    example = {name: torch.ones(2, STEP, dtype=torch.long) for name in names}
    # A mask of ones alone may be traced as no mask.
    example["attention_mask"][1, STEP // 2 :] = 0
    with warnings.catch_warnings():
        # torch warns about the way OpenVINO traces.
        warnings.simplefilter("ignore")
        converted = openvino.convert_model(model, example_input=example)
    hint = "bf16" if fast_dtype("cpu") == torch.bfloat16 else "f32"
    compiled = openvino.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    return lambda batch: np.asarray(compiled({name: batch[name] for name in names})[0], np.float32)


def _on_gpu(model: Any, device: str) -> Run:
    model = model.to(device, torch.bfloat16)

    def run(batch: Batch) -> Floats:
        inputs = {name: torch.from_numpy(each).to(device) for name, each in batch.items()}
        with torch.inference_mode():
            return np.asarray(model(**inputs)[0].float().cpu().numpy())

    return run

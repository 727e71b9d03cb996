"""The cross-encoder in training: pairs of texts to logits, in few shapes and reduced precision."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Lengths are padded to multiples of this: engines keep compiled code for each shape they have seen.
STEP = 16
# Fused attention is the faster one for longer texts, on CPUs.
PLAIN_ATTENTION = 256


class CrossEncoder:
    """One label, the model's own tokenizer. Word embeddings are frozen: the texts at hand know few of the words."""

    def __init__(self, start: str, device: str, layers: int | None = None) -> None:
        """`start`: a folder or hub id of an encoder or cross-encoder; `layers`: repeat its layers to have so many."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.device = torch.device(device)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(start)
        # Without dropout: targets are soft, texts are seen once, and attention is twice as fast.
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            start, num_labels=1, dtype=torch.float32, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0
        )
        if layers:
            _deepen(model, layers)
        model.get_input_embeddings().requires_grad_(False)
        self.model: Any = model.to(self.device)
        self.window: int = self.tokenizer.model_max_length
        self.tokens_read = 0

    def logits(self, pairs: Sequence[tuple[str, str]], max_length: int, rows: int) -> Tensor:
        """Float32 logits of (query, document) pairs, shape (pairs,), computed `rows` at a time, by length."""
        encoded = self._encode(pairs, min(max_length, self.window))
        order = sorted(range(len(pairs)), key=lambda at: len(encoded[at]["input_ids"]))
        parts = [order[first : first + rows] for first in range(0, len(order), rows)]
        scored = torch.cat([self._forward([encoded[at] for at in part]) for part in parts])
        return scored[torch.tensor(order).argsort().to(self.device)]

    def _encode(self, pairs: Sequence[tuple[str, str]], max_length: int) -> list[dict[str, list[int]]]:
        queries, documents = zip(*pairs, strict=True)
        encoded = self.tokenizer(list(queries), list(documents), truncation="longest_first", max_length=max_length)
        return [{name: encoded[name][at] for name in encoded} for at in range(len(pairs))]

    def _forward(self, rows: Sequence[dict[str, list[int]]]) -> Tensor:
        longest = max(len(row["input_ids"]) for row in rows)
        padded = min(-(-longest // STEP) * STEP, self.window)
        batch = self.tokenizer.pad(list(rows), padding="max_length", max_length=padded, return_tensors="pt")
        self.tokens_read += sum(len(row["input_ids"]) for row in rows)
        if self.device.type == "cpu":
            self.model.set_attn_implementation("eager" if padded <= PLAIN_ATTENTION else "sdpa")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.model.dtype == torch.float32):
            logits: Tensor = self.model(**batch.to(self.device)).logits
        return logits.float().squeeze(-1)

    def trained(self) -> Iterator[tuple[str, Any]]:
        """The parameters that learn, by name."""
        yield from ((name, each) for name, each in self.model.named_parameters() if each.requires_grad)

    def save(self, folder: Path) -> None:
        """In float16, as Hugging Face has it; the configuration asks for float32, which CPUs compute in."""
        import json

        self.model.half().save_pretrained(folder)
        self.model.float()
        # The length that was read last is none of the model's.
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.save_pretrained(folder)
        file = folder / "config.json"
        config = json.loads(file.read_text())
        config |= {
            "dtype": "float32",
            "id2label": {"0": "relevance"},
            "label2id": {"relevance": 0},
            "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
        }
        file.write_text(json.dumps(config, indent=2) + "\n")


def _deepen(model: Any, layers: int) -> None:
    """Each layer several times in a row, the way a deeper model is started from a shallow one."""
    from copy import deepcopy

    encoder = model.base_model.encoder
    had = len(encoder.layer)
    encoder.layer = torch.nn.ModuleList(deepcopy(encoder.layer[at * had // layers]) for at in range(layers))
    model.config.num_hidden_layers = layers

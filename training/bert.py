"""BERT with one logit, written out for the GPU: fixed shapes and no branch that depends on the data.

A CUDA graph can therefore record a training step. Weights come from a transformers model and go back into one.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

EMBEDDINGS = {
    "words": "bert.embeddings.word_embeddings",
    "positions": "bert.embeddings.position_embeddings",
    "types": "bert.embeddings.token_type_embeddings",
    "embedding_norm": "bert.embeddings.LayerNorm",
    "pooler": "bert.pooler.dense",
    "head": "classifier",
}
# The three projections of attention are one product here, so their weights are joined.
LAYER = {
    "projections": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "expand": ("intermediate.dense",),
    "shrink": ("output.dense",),
    "output_norm": ("output.LayerNorm",),
}
# What this module computes; a model that is configured otherwise is rejected.
SUPPORTED = {"model_type": "bert", "hidden_act": "gelu", "num_labels": 1}


class Layer(torch.nn.Module):  # type: ignore[misc]
    """Attention and feed-forward network, each with a residual connection and a norm."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden, inner, epsilon = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self._heads = config.num_attention_heads
        self.projections = torch.nn.Linear(hidden, 3 * hidden)
        self.attention_output = torch.nn.Linear(hidden, hidden)
        self.attention_norm = torch.nn.LayerNorm(hidden, epsilon)
        self.expand = torch.nn.Linear(hidden, inner)
        self.shrink = torch.nn.Linear(inner, hidden)
        self.output_norm = torch.nn.LayerNorm(hidden, epsilon)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Shapes: `states` (rows, tokens, hidden), `mask` (rows, 1, 1, tokens), true where a token is."""
        rows, tokens, hidden = states.shape
        projected = self.projections(states).view(rows, tokens, 3, self._heads, hidden // self._heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        joined = attended.transpose(1, 2).reshape(rows, tokens, hidden)
        states = self.attention_norm(states + self.attention_output(joined))
        return self.output_norm(states + self.shrink(functional.gelu(self.expand(states))))


class Bert(torch.nn.Module):  # type: ignore[misc]
    """Token ids to logits. Word embeddings are frozen, as in `training.model`; there is no dropout."""

    def __init__(self, model: Any) -> None:
        """Copies the weights of a `BertForSequenceClassification`. Raises `ValueError` for another architecture."""
        super().__init__()
        config = model.config
        for name, supported in SUPPORTED.items():
            if getattr(config, name) != supported:
                raise ValueError(
                    f"train-gpu needs a BERT model with {name} {supported!r}, this one has {getattr(config, name)!r}: "
                    "use train"
                )
        self.words = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = torch.nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.types = torch.nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.embedding_norm = torch.nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layers = torch.nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.pooler = torch.nn.Linear(config.hidden_size, config.hidden_size)
        self.head = torch.nn.Linear(config.hidden_size, 1)
        theirs = model.state_dict()
        self.load_state_dict({own: torch.cat([theirs[name] for name in names]) for own, names in self._names()})
        self.words.weight.requires_grad_(False)

    def forward(self, ids: Tensor, lengths: Tensor, starts: Tensor) -> Tensor:
        """Float32 logits, shape (rows,).

        Shapes: `ids` (rows, tokens); `lengths` (rows,), the tokens of a row without padding; `starts` (rows,), where
        the second segment begins.
        """
        places = torch.arange(ids.shape[1], device=ids.device)
        segments = (places >= starts[:, None]).long()
        states = self.words(ids) + self.positions.weight[: ids.shape[1]] + self.types(segments)
        states, mask = self.embedding_norm(states), (places < lengths[:, None])[:, None, None]
        for layer in self.layers:
            states = layer(states, mask)
        return self.head(torch.tanh(self.pooler(states[:, 0])))[:, 0].float()

    def trained(self) -> list[Tensor]:
        """The parameters that learn."""
        return [each for each in self.parameters() if each.requires_grad]

    def transformers_weights(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values in `trained`, by the names that transformers gives them."""
        names = {own: theirs for own, theirs in self._names() if own in trained}
        return {
            name: part
            for own, theirs in names.items()
            for name, part in zip(theirs, trained[own].chunk(len(theirs)), strict=True)
        }

    def _names(self) -> Iterator[tuple[str, list[str]]]:
        """Each parameter here, with the parameters of transformers that it joins."""
        modules = {own: [theirs] for own, theirs in EMBEDDINGS.items()}
        for at in range(len(self.layers)):
            for own, theirs in LAYER.items():
                modules[f"layers.{at}.{own}"] = [f"bert.encoder.layer.{at}.{name}" for name in theirs]
        for name, _ in self.named_parameters():
            module, _, kind = name.rpartition(".")
            yield name, [f"{theirs}.{kind}" for theirs in modules[module]]

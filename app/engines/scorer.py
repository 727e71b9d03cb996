"""A loaded cross-encoder as one module from tensors to logits, which can be packed, compiled and exported."""

import logging
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.modules import LogitScore
from torch import Tensor

from app.engines.checkpoint import is_decoder, positive_label
from app.engines.segments import PREFIX

log = logging.getLogger(__name__)


class Scorer(torch.nn.Module):  # type: ignore[misc]
    """Takes tensors of shape (rows, tokens), padded on the right, and returns logits of shape (rows, 1).

    With `cu_seq_lens_q`, of shape (pairs + 1,), all pairs are in one row, and the logits have shape (pairs, 1).
    """

    transformer: Any
    """The `transformers` model that does the work."""


class Classifier(Scorer):
    """A sequence classifier with the head inside the `transformers` model."""

    def __init__(self, model: CrossEncoder) -> None:
        super().__init__()
        self.transformer = model[0].model
        self._positive = positive_label(model)

    def forward(self, **inputs: Any) -> Tensor:
        return one_logit(self.transformer(**inputs).logits, self._positive)


class LastToken(Scorer):
    """A decoder with one linear row on the last token of each pair.

    For a causal language model the row is the difference between the rows of the tokens that mean yes and no.
    """

    def __init__(self, transformer: Any, row: Tensor, bias: Tensor | None = None) -> None:
        """`row`: shape (channels,). `bias`: a scalar."""
        super().__init__()
        self.transformer = transformer
        self.head = torch.nn.Linear(len(row), 1, device=row.device, dtype=torch.float32)
        self.head.weight.data.copy_(row[None])
        self.head.bias.data.fill_(0 if bias is None else bias)

    @classmethod
    def of_language_model(cls, model: CrossEncoder) -> "LastToken":
        """From a causal language model and its `LogitScore`."""
        own, tokens = model[0].model, model[-1]
        output = own.get_output_embeddings()
        return cls(own.base_model, *_difference(output, tokens.true_token_id, tokens.false_token_id))

    @classmethod
    def of_classifier(cls, model: CrossEncoder) -> "LastToken":
        """From a sequence classifier with one label, or with two."""
        own, positive = model[0].model, positive_label(model)
        one, other = (0, None) if positive is None else (positive, 1 - positive)
        return cls(own.base_model, *_difference(own.score, one, other))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        segment_ids: Tensor | None = None,
        **inputs: Any,
    ) -> Tensor:
        """With `segment_ids`, of shape (rows, tokens), logits of every token: see `app.engines.segments`."""
        inputs.pop("token_type_ids", None)
        if segment_ids is not None:
            seen = _seen(segment_ids)
            found = self.transformer(input_ids=input_ids, attention_mask=seen, use_cache=False, **inputs)
            of_tokens: Tensor = self.head(found.last_hidden_state.float()).squeeze(-1)
            return of_tokens
        extent = {"attention_mask": attention_mask} if cu_seq_lens_q is None else {"cu_seq_lens_q": cu_seq_lens_q}
        hidden: Tensor = self.transformer(input_ids=input_ids, use_cache=False, **extent, **inputs).last_hidden_state
        if cu_seq_lens_q is not None:
            last = hidden[0, cu_seq_lens_q[1:] - 1]
        else:
            places = attention_mask.sum(1) - 1  # type: ignore[union-attr]
            last = hidden.gather(1, places[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)
        logits: Tensor = self.head(last.float())
        return logits


class Modular(Scorer):
    """A transformer followed by modules of sentence-transformers, such as pooling and dense layers."""

    def __init__(self, model: CrossEncoder) -> None:
        super().__init__()
        first, *rest = model
        self.transformer = first.model
        self.head = torch.nn.ModuleList(rest)
        self._name = first.module_output_name

    def forward(
        self, attention_mask: Tensor | None = None, cu_seq_lens_q: Tensor | None = None, **inputs: Any
    ) -> Tensor:
        extent = {"attention_mask": attention_mask} if cu_seq_lens_q is None else {"cu_seq_lens_q": cu_seq_lens_q}
        hidden: Tensor = self.transformer(**extent, **inputs).last_hidden_state
        features: dict[str, Any] = {self._name: hidden, **extent}
        if cu_seq_lens_q is None:
            # Padding is on the right. With a constant place the export computes the last layer for this token only.
            features["cls_token_embeddings"] = hidden[:, 0]
        for module in self.head:
            features = module(features)
        scores: Tensor = features["scores"]
        return scores


def make_scorer(model: CrossEncoder) -> Scorer:
    """The scorer for this kind of model. It is right only if a comparison with the model itself shows it."""
    if isinstance(model[-1], LogitScore):
        return LastToken.of_language_model(model)
    if len(model) > 1:
        return Modular(model)
    return LastToken.of_classifier(model) if is_decoder(model) else Classifier(model)


def one_logit(logits: Tensor, positive: int | None) -> Tensor:
    """The logits, or the difference of two labels, as shape (rows, 1)."""
    if positive is None:
        return logits
    return logits[:, positive : positive + 1] - logits[:, 1 - positive : 2 - positive]


def _seen(segment_ids: Tensor) -> Tensor:
    """Which tokens each token attends to: the prefix and its own segment, up to itself. For all heads."""
    places = torch.arange(segment_ids.shape[1], device=segment_ids.device)
    own = segment_ids[:, :, None] == segment_ids[:, None]
    return ((own | (segment_ids[:, None] == PREFIX)) & (places[:, None] >= places))[:, None]


def _difference(layer: torch.nn.Linear, one: int, other: int | None) -> tuple[Tensor, Tensor | None]:
    """The row, and the bias, that give the difference of two outputs of a linear layer, or one of its outputs."""
    row, bias = layer.weight.detach().float(), layer.bias.detach().float() if layer.bias is not None else None
    if other is None:
        return row[one], None if bias is None else bias[one]
    return row[one] - row[other], None if bias is None else bias[one] - bias[other]

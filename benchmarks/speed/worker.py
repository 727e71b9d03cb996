"""Runs one library behind a pipe: reads a JSON request per line and writes its scores as a line.

    python worker.py LIBRARY MODEL_FOLDER

It runs in the virtual environment of the library, so it imports nothing from this project.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

Rank = Callable[[str, list[str]], Sequence[float]]


def cross_encoder(backend: str) -> Callable[[str], Rank]:
    def load(folder: str) -> Rank:
        from sentence_transformers import CrossEncoder

        options: dict[str, Any] = {} if backend == "torch" else {"backend": backend}
        model = CrossEncoder(folder, device="cpu", **options)

        def rank(query: str, documents: list[str]) -> Sequence[float]:
            pairs = [(query, document) for document in documents]
            return list(map(float, model.predict(pairs, show_progress_bar=False)))

        return rank

    return load


def flashrank(folder: str) -> Rank:
    """The folder has the name and the layout of a model that FlashRank knows."""
    from flashrank import Ranker, RerankRequest

    parent, name = os.path.split(folder)
    ranker = Ranker(model_name=name, cache_dir=parent, max_length=512, log_level="ERROR")

    def rank(query: str, documents: list[str]) -> Sequence[float]:
        passages = [{"id": index, "text": document} for index, document in enumerate(documents)]
        found = {row["id"]: float(row["score"]) for row in ranker.rerank(RerankRequest(query, passages))}
        return [found[index] for index in range(len(documents))]

    return rank


def fastembed(folder: str) -> Rank:
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    TextCrossEncoder.add_custom_model("local/model", ModelSource(hf="local/model"), model_file="model.onnx")
    model = TextCrossEncoder("local/model", specific_model_path=folder)
    return lambda query, documents: [float(score) for score in model.rerank(query, documents)]


LIBRARIES: dict[str, Callable[[str], Rank]] = {
    "torch": cross_encoder("torch"),
    "onnx": cross_encoder("onnx"),
    "openvino": cross_encoder("openvino"),
    "flashrank": flashrank,
    "fastembed": fastembed,
}


def main() -> None:
    """Answer requests until the pipe closes. Output of the library itself goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    library, folder = sys.argv[1:]
    rank = LIBRARIES[library](folder)
    rank("ready", ["ready"])
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(rank(request["query"], request["documents"])), file=answers, flush=True)


if __name__ == "__main__":
    main()

"""The trainer for GPUs, in miniature on a CPU: the same model, the same loss, the same batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.models import make_model, make_tokenizer
from tests.test_training import toy_groups
from training.__main__ import cli
from training.batches import Batches, Layout
from training.bert import Bert
from training.device import DeviceTraining, loss_of
from training.groups import Group, write_groups
from training.loop import listwise
from training.model import CrossEncoder
from training.quality import accuracy
from training.schedule import LENGTHS, LONG, Plan

WINDOW = 64


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("start"), spread=0.3))


def inputs(step: int, model: CrossEncoder, groups: list[Group]) -> list[torch.Tensor]:
    plan = Plan(steps=len(LENGTHS), groups_per_step=4)
    return [torch.from_numpy(each) for each in Batches(model.tokenizer, WINDOW, groups, plan)[step]]


@pytest.mark.parametrize("layers", [None, 3])
def test_the_network_gives_the_logits_of_transformers(start: str, layers: int | None) -> None:
    model = CrossEncoder(start, "cpu", layers)
    ids, lengths, starts, *_ = inputs(0, model, toy_groups(8, seed=1))
    mask = torch.arange(WINDOW) < lengths[:, None]
    segments = (torch.arange(WINDOW) >= starts[:, None]).long() * mask
    with torch.inference_mode():
        expected = model.model.eval()(input_ids=ids, attention_mask=mask.long(), token_type_ids=segments).logits[:, 0]
        torch.testing.assert_close(Bert(model.model)(ids, lengths, starts), expected, atol=1e-5, rtol=1e-4)


def test_weights_go_back_to_transformers_under_their_names(start: str) -> None:
    model = CrossEncoder(start, "cpu")
    network, states = Bert(model.model), model.model.state_dict()
    weights = network.transformers_weights({name: each.detach() for name, each in network.named_parameters()})
    assert weights.keys() == states.keys()
    assert all(torch.equal(weights[name], states[name]) for name in states)


def test_another_architecture_is_rejected(tmp_path: Path) -> None:
    model = CrossEncoder(str(make_model(tmp_path, "xlm-roberta")), "cpu")
    with pytest.raises(ValueError, match="model_type 'bert', this one has 'xlm-roberta': use train"):
        Bert(model.model)


def test_the_loss_is_that_of_the_other_loop() -> None:
    rng = np.random.default_rng(0)
    groups = [Group("q", ["a", "b", "c"], [1.0, 0.0, 0.0], teacher=rng.normal(0, 4, 3).tolist()) for _ in range(5)]
    logits = torch.from_numpy(rng.normal(0, 3, 15).astype(np.float32))
    targets, labels = (
        torch.tensor([each.targets() for each in groups]),
        torch.tensor([each.labels for each in groups]),
    )
    torch.testing.assert_close(loss_of(logits, targets, labels), listwise(logits, groups))


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_a_batch_holds_the_tokens_of_its_pairs(family: str) -> None:
    tokenizer, plan = make_tokenizer(family), Plan(steps=10, groups_per_step=4)
    groups = toy_groups(8, seed=2)
    batch = Batches(tokenizer, WINDOW, groups, plan)[0]
    chosen = [groups[at] for at in plan.reading(0, len(groups)).groups]
    assert batch.ids.shape == (16, WINDOW)
    pairs = [(group.query, document) for group in chosen for document in group.documents]
    for row, pair in enumerate(pairs):
        expected = tokenizer(*pair)
        assert batch.ids[row, : batch.lengths[row]].tolist() == expected["input_ids"]
        assert set(batch.ids[row, batch.lengths[row] :]) <= {tokenizer.pad_token_id}
        if family == "bert":
            assert expected["token_type_ids"].index(1) == batch.starts[row]
        else:
            assert batch.starts[row] == WINDOW
    assert batch.targets.tolist() == [pytest.approx(group.targets()) for group in chosen]
    assert batch.labels.tolist() == [group.labels for group in chosen]


def test_a_long_document_fills_its_row_and_keeps_its_text() -> None:
    tokenizer, plan = make_tokenizer("bert"), Plan(steps=10, groups_per_step=8)
    groups = toy_groups(8, seed=3)
    step = LENGTHS.index(LONG)
    batch = Batches(tokenizer, WINDOW, groups, plan)[step]
    chosen = [groups[at] for at in plan.reading(step, len(groups)).groups]
    assert set(batch.lengths.tolist()) == {WINDOW}
    texts = [" ".join(map(str, row)) for row in batch.ids.tolist()]
    documents = [document for group in chosen for document in group.documents]
    places = set()
    for text, document in zip(texts, documents, strict=True):
        ids = " ".join(map(str, tokenizer(document, add_special_tokens=False)["input_ids"]))
        assert ids in text
        places.add(text.index(ids))
    assert len(places) > 1


def test_a_long_query_leaves_room_for_the_document() -> None:
    tokenizer = make_tokenizer("bert")
    group = Group("moon " * 90, ["bread " * 90], [1.0])
    batch = Batches(tokenizer, WINDOW, [group], Plan(steps=1, groups_per_step=1))[0]
    assert batch.lengths.tolist() == [WINDOW]
    words = tokenizer.convert_ids_to_tokens(batch.ids[0])
    assert (words.count("moon"), words.count("bread")) == (32, 29)


def test_groups_of_another_size_are_cut_or_skipped() -> None:
    groups = toy_groups(6, seed=4)
    groups[0] = groups[0].kept([0, 1])
    groups[1] = Group("what causes", [*groups[1].documents, "bread"], [*groups[1].labels, 0.0])
    batches = Batches(make_tokenizer("bert"), WINDOW, groups, Plan(steps=1, groups_per_step=5))
    assert batches.documents == 4
    assert batches[0].labels.shape == (5, 4)
    with pytest.raises(ValueError, match="no groups"):
        Batches(make_tokenizer("bert"), WINDOW, [], Plan(steps=1))


def test_a_model_learns_what_is_relevant(start: str) -> None:
    model, plan = CrossEncoder(start, "cpu"), Plan(steps=80, groups_per_step=8, learning_rate=5e-3, cool_down=30)
    held_out = toy_groups(20, seed=9)
    before = accuracy(model, held_out, 16)["all"]
    batches = Batches(model.tokenizer, WINDOW, toy_groups(100, seed=1), plan)
    words = model.model.get_input_embeddings().weight.clone()
    weights = DeviceTraining(Bert(model.model), "cpu", plan).run(batches, workers=0)
    model.model.load_state_dict(model.model.state_dict() | weights)
    assert accuracy(model, held_out, 16)["all"] == 1 > before
    assert torch.equal(model.model.get_input_embeddings().weight, words)


def test_a_pair_is_written_between_special_tokens() -> None:
    layout = Layout(make_tokenizer("bert"))
    row = np.full(8, layout.padding)
    query, document = np.array([7, 8], np.int32), np.array([9], np.int32)
    assert layout.write(row, query, document) == (6, 4)
    assert row.tolist() == [0, 7, 8, 2, 9, 2, 1, 1]


def test_the_command_trains_and_calibrates(start: str, tmp_path: Path) -> None:
    for name, count in (("train", 12), ("heldout", 6)):
        (tmp_path / "groups").mkdir(exist_ok=True)
        write_groups(toy_groups(count, seed=count), tmp_path / "groups" / f"{name}.jsonl.gz")
    command = ["train-gpu", str(tmp_path / "groups"), "--start", start, "--output", str(tmp_path / "model")]
    command += ["--device", "cpu", "--workers", "0", "--groups-per-step", "4", "--epochs", "2"]
    command += ["--learning-rate", "0.01"]
    answer = CliRunner().invoke(cli, command)
    assert answer.exit_code == 0, answer.output
    assert "Reliability" in answer.output
    trained = CrossEncoder(str(tmp_path / "model"), "cpu").model.state_dict()
    original = CrossEncoder(start, "cpu").model.state_dict()
    moved = "bert.encoder.layer.1.attention.self.value.weight"
    assert not torch.allclose(trained[moved], original[moved], atol=1e-3)

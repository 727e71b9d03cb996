"""Training on tiny models: that it learns, goes on where it stopped, and says what is wrong with one's texts."""

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertModel
from typer.testing import CliRunner

from app.backends.model_source import locate_model
from app.backends.torch import TorchScorer
from tests.models import CONFIGS, WORDS, make_model, make_tokenizer
from training.__main__ import cli
from training.calibration import calibrate, fit, reliability
from training.candidates import Floats
from training.corpora import cloze, read_corpora
from training.groups import Group, read_groups, write_groups
from training.late import LateInteraction
from training.loop import CHECKPOINT, Plan, Training, listwise
from training.model import CrossEncoder
from training.prepare import Judge, prepare, prepare_own, read_own
from training.quality import accuracy, score
from training.recipe import Recipe, follow
from training.teaching import average, teach

OTHERS = [word for word in WORDS if word not in ("tides", "moon")]


def toy_groups(count: int, seed: int) -> list[Group]:
    """Relevant is what speaks of tides."""
    rng = random.Random(seed)

    def text(*words: str) -> str:
        chosen = [*words, *rng.choices(OTHERS, k=5)]
        rng.shuffle(chosen)
        return " ".join(chosen)

    return [
        Group("what causes", [text("tides"), *(text() for _ in range(3))], [1.0, 0.0, 0.0, 0.0], source="toy")
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("start")))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bi-encoder: a bare transformer."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(3)
    config = CONFIGS["bert"]
    config.vocab_size, config.pad_token_id = len(WORDS) + 4, 1
    BertModel(config).save_pretrained(folder)
    make_tokenizer("bert").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def judge(encoder: str) -> Judge:
    return LateInteraction(encoder, "cpu").judge


def by_words(texts: Sequence[str]) -> Floats:
    """Unit vectors that count words."""
    counts = np.array([[text.lower().split().count(word) for word in WORDS] for text in texts], np.float32) + 1e-3
    return np.asarray(counts / np.linalg.norm(counts, axis=1, keepdims=True), np.float32)


def test_a_model_learns_what_is_relevant(start: str, tmp_path: Path) -> None:
    model = CrossEncoder(start, "cpu")
    held_out = toy_groups(20, seed=9)
    before = accuracy(model, held_out, 16)["all"]
    Training(model, Plan(steps=60, learning_rate=5e-3), toy_groups(100, seed=1), tmp_path).run([])
    assert accuracy(model, held_out, 16)["all"] == 1 > before


def test_an_interrupted_training_ends_with_the_same_model(start: str, tmp_path: Path) -> None:
    groups, plan = toy_groups(24, seed=1), Plan(steps=8, groups_per_step=4, checkpoint_every=4)
    whole = CrossEncoder(start, "cpu")
    Training(whole, plan, groups, tmp_path / "whole").run([])

    class Interrupted(CrossEncoder):
        def logits(self, pairs: Sequence[tuple[str, str]], max_length: int, rows: int) -> torch.Tensor:
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls > 6:
                raise KeyboardInterrupt
            return super().logits(pairs, max_length, rows)

    with pytest.raises(KeyboardInterrupt):
        Training(Interrupted(start, "cpu"), plan, groups, tmp_path / "parts").run([])
    resumed = CrossEncoder(start, "cpu")
    Training(resumed, plan, groups, tmp_path / "parts").run([])
    for name, weights in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weights)


def test_a_checkpoint_of_another_plan_is_refused(start: str, tmp_path: Path) -> None:
    groups = toy_groups(8, seed=1)
    Training(CrossEncoder(start, "cpu"), Plan(steps=2, checkpoint_every=1), groups, tmp_path).run([])
    assert (tmp_path / CHECKPOINT).exists()
    with pytest.raises(ValueError, match="another plan"):
        Training(CrossEncoder(start, "cpu"), Plan(steps=3), groups, tmp_path).run([])


def test_the_loss_is_least_at_the_targets() -> None:
    group = Group("q", ["a", "b"], [1.0, 0.0], cosines=[0.8, 0.5], bm25=[0.2, 1.0], late=[0.5, 0.4])
    assert group.targets() == pytest.approx([4 + 2.4 + 0.2 + 7, 1.5 + 1 + 5.6])
    right = torch.tensor([3.0, -2.5])
    assert listwise(right, [group]) < listwise(right.flip(0), [group])
    # The same distances, so the divergence is nothing and the labels alone are left.
    assert listwise(right, [group]) == pytest.approx(0.2 * np.mean(np.log1p(np.exp([-3.0, -2.5]))), rel=1e-5)


def test_calibrated_scores_are_shares_and_the_order_stays(start: str) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-(0.5 * logits - 1)))).astype(float)
    scale, shift = fit(logits, labels)
    assert (scale, shift) == (pytest.approx(0.5, abs=0.05), pytest.approx(-1, abs=0.05))
    for each in reliability(1 / (1 + np.exp(-(scale * logits + shift))), labels):
        assert each.pairs < 1000 or each.relevant == pytest.approx(each.mean_score, abs=0.05)
    model, groups = CrossEncoder(start, "cpu"), toy_groups(30, seed=2)
    before = np.array(score(model, groups, 16))
    calibrate(model, groups, 16)
    after = np.array(score(model, groups, 16))
    # A line through all points: the scale may be any, and one for all.
    slope, shift = np.polyfit(before.ravel(), after.ravel(), 1)
    assert after == pytest.approx(slope * before + shift, abs=1e-2)
    assert (1 / (1 + np.exp(-after))).mean() == pytest.approx(0.25, abs=0.03)


def test_a_saved_model_is_served_as_it_was_trained(start: str, tmp_path: Path) -> None:
    model, [group] = CrossEncoder(start, "cpu"), toy_groups(1, seed=4)
    model.save(tmp_path)
    scorer = TorchScorer(locate_model(str(tmp_path), None), device="cpu", max_length=64, threads=1, precision="fp32")
    assert scorer.score(scorer.encode(group.query, group.documents)) == pytest.approx(
        score(model, [group], 4)[0], abs=2e-2
    )
    assert scorer.engine.activation == "sigmoid"


def _write(file: Path, rows: Sequence[dict[str, object]]) -> None:
    with gzip.open(file, "wt") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    """Two of the public corpora, very small."""
    folder = tmp_path / "data"
    folder.mkdir()
    texts = [
        f"The moon of {number} causes tides. A sea of plants. Light and energy of {number}." for number in range(40)
    ]
    _write(
        folder / "squad_passages.jsonl.gz",
        [{"pid": 100 + at, "title": f"Moon_{at}", "text": text} for at, text in enumerate(texts)],
    )
    _write(
        folder / "squad_bm25_negatives.jsonl.gz",
        [
            {"q": f"what causes tides of {at}", "pos": 100 + at, "neg": [100 + (at + 1) % 40], "ans": [f"of {at % 10}"]}
            for at in range(40)
        ],
    )
    _write(
        folder / "pubmedqa.jsonl.gz",
        [
            {"pmid": str(at), "query": f"Does light cause {at}?", "text": f"{text} PMID {at}."}
            for at, text in enumerate(texts)
        ],
    )
    return folder


def test_groups_of_the_corpora(corpora: Path, judge: Judge, tmp_path: Path) -> None:
    prepare(
        corpora,
        tmp_path / "groups",
        by_words,  # type: ignore[arg-type]
        judge,
        count=200,
        size=4,
        passages=1000,
        seed=0,
    )
    train = list(read_groups(tmp_path / "groups" / "train.jsonl.gz"))
    held_out = list(read_groups(tmp_path / "groups" / "heldout.jsonl.gz"))
    assert {group.source for group in train} <= {"squad", "squad-cloze", "pubmedqa", "pubmedqa-cloze"}
    assert {"squad", "pubmedqa"} <= {group.source for group in train}
    asked = [group for group in train if group.source == "squad"]
    assert len(asked) > 20
    for group in asked:
        number = group.query.split()[-1]
        assert f"of {number} causes" in group.documents[0]
        assert not any(f"of {int(number) % 10}" in document for document in group.documents[1:])
        assert len(group.documents) == len(group.labels) == len(group.cosines) == len(group.bm25) == len(group.late)
    assert held_out
    assert not {group.query for group in train} & {group.query for group in held_out}


def test_a_cloze_question_asks_for_the_rest(corpora: Path) -> None:
    [corpus, _] = read_corpora(corpora, 1000, random.Random(0))
    sentence = "Of light and energy the plant of the sea makes bread"
    corpus.passages[0] = f"Light. Sea. {sentence}. Bread."
    asked = [
        next(each for each in cloze(corpus, random.Random(seed)).questions if each.index == 0) for seed in range(20)
    ]
    assert {each.query for each in asked} == {sentence}
    assert {each.positive for each in asked} == {"Light. Sea. Bread.", corpus.passages[0]}


def test_texts_of_ones_own(judge: Judge, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    rows = [
        {"query": "what causes tides", "positives": ["the moon", "gravity of the moon"], "negatives": ["stock market"]},
        *({"query": f"{word} of plant", "positive": f"a plant and {word}"} for word in OTHERS),
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    prepare_own(file, tmp_path / "groups", by_words, judge, size=4, seed=0)  # type: ignore[arg-type]
    both = [*read_groups(tmp_path / "groups/train.jsonl.gz"), *read_groups(tmp_path / "groups/heldout.jsonl.gz")]
    tides = [group for group in both if group.query == "what causes tides"]
    assert sorted(group.documents[0] for group in tides) == ["gravity of the moon", "the moon"]
    assert all("stock market" in group.documents for group in tides)
    assert not any({"the moon", "gravity of the moon"} <= set(group.documents) for group in tides)
    assert all(len(group.documents) == 4 for group in both)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "own.jsonl:2: no JSON"),
        ("[]", "own.jsonl:2: an object is wanted"),
        ('{"query": "a"}', "own.jsonl:2: query and positives"),
        ('{"query": "", "positives": "b"}', "own.jsonl:2: query and positives"),
        ('{"query": "a", "positives": [1]}', "own.jsonl:2: positives: a text or a list of texts"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(line: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(f'{{"query": "a", "positives": "b"}}\n{line}\n')
    with pytest.raises(ValueError, match=message):
        read_own(file)


def test_the_command_says_it_in_one_line(encoder: str, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text("{}\n")
    answer = CliRunner().invoke(cli, ["prepare-own", str(file), "--output", str(tmp_path / "out"), "--base", encoder])
    assert answer.exit_code == 1
    assert answer.output.strip().splitlines()[-1].startswith("error: ")
    assert "own.jsonl:1" in answer.output


def test_late_interaction_is_of_the_nearest_tokens(encoder: str, judge: Judge) -> None:
    """Against the same computed here, text by text and without padding, in float32."""
    tokenizer, model = make_tokenizer("bert"), BertModel.from_pretrained(encoder)

    def vectors(text: str) -> torch.Tensor:
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return torch.nn.functional.normalize(states, dim=-1)

    groups = [
        Group("what causes tides", ["the moon causes tides", " ".join(OTHERS)], [1.0, 0.0], source="one"),
        Group("moon", ["moon", "the sea"], [1.0, 0.0], source="two"),
    ]
    judged = list(judge(groups))
    assert [group.query for group in judged] == [group.query for group in groups]
    for group in judged:
        of_query = vectors(group.query)[1:-1]
        expected = [float((of_query @ vectors(text).T).amax(1).mean()) for text in group.documents]
        assert group.late == pytest.approx(expected, abs=0.02)
        assert group.targets()[0] == pytest.approx(4 + 14 * group.late[0])


def test_a_query_of_no_tokens_has_late_interaction_with_nothing(judge: Judge) -> None:
    [judged] = judge([Group("", ["moon", "the sea"], [1.0, 0.0])])
    assert judged.late == [0.0, 0.0]


def test_teachers_give_targets_and_choose_the_hardest(start: str) -> None:
    teachers = [CrossEncoder(start, "cpu"), CrossEncoder(start, "cpu", layers=3)]
    groups = toy_groups(3, seed=5)
    alone = [np.array(score(teacher, groups, 8)) for teacher in teachers]
    taught = list(teach(groups, teachers, 8, keep=2))
    for at, group in enumerate(taught):
        mean = (alone[0][at] + alone[1][at]) / 2
        assert group.labels == [1.0, 0.0]
        assert group.teacher == pytest.approx([mean[0], mean[1:].max()], abs=1e-3)
        assert group.targets() == pytest.approx([4 + group.teacher[0], group.teacher[1]])


def test_the_average_of_models(start: str, tmp_path: Path) -> None:
    models = [CrossEncoder(start, "cpu") for _ in range(2)]
    weight = models[0].model.classifier.weight.detach().clone()
    with torch.no_grad():
        models[1].model.classifier.weight.add_(1)
    torch.testing.assert_close(average(models).model.classifier.weight.detach(), weight + 0.5)


def test_a_share_of_the_base_comes_back_in_the_layers_only(start: str) -> None:
    model, base = CrossEncoder(start, "cpu"), CrossEncoder(start, "cpu")
    with torch.no_grad():
        for each in base.model.parameters():
            each.add_(1)
    before = {name: each.clone() for name, each in model.model.state_dict().items()}
    changed = {name: each - before[name] for name, each in average([model], base, 0.25).model.state_dict().items()}
    for name, difference in changed.items():
        expected = 0.25 if name.startswith("bert.encoder.layer.") else 0.0
        torch.testing.assert_close(difference, torch.full_like(difference, expected))


def test_the_whole_recipe_in_one_command(corpora: Path, encoder: str, tmp_path: Path) -> None:
    recipe = Recipe(
        groups=60, size=3, passages=30, groups_per_step=8, rows=32, learning_rate=1e-3, seeds=2, teachers=1,
        teacher_layers=3, pool=5,
    )  # fmt: skip
    bins = follow(recipe, corpora, tmp_path / "out", encoder, None, "cpu", 0)
    assert sum(each.pairs for each in bins) > 0
    model = CrossEncoder(str(tmp_path / "out" / "model"), "cpu")
    assert model.model.config.num_hidden_layers == 2
    made = (tmp_path / "out" / "student-0" / "model.safetensors").stat().st_mtime_ns
    follow(recipe, corpora, tmp_path / "out", encoder, None, "cpu", 0)
    assert (tmp_path / "out" / "student-0" / "model.safetensors").stat().st_mtime_ns == made


def test_groups_are_written_as_they_are(tmp_path: Path) -> None:
    groups = toy_groups(3, seed=6)
    assert write_groups(groups, tmp_path / "groups.jsonl.gz") == 3
    assert list(read_groups(tmp_path / "groups.jsonl.gz")) == groups

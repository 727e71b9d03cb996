"""Training of tiny models: learning, resuming, and errors in input files."""

import gzip
import json
import random
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertModel
from typer.testing import CliRunner

from app.engines.models.source import locate_model
from app.engines.torch import TorchEngine
from tests.models import CONFIGS, WORDS, export, make_model, make_tokenizer
from training.__main__ import cli
from training.calibration import calibrate
from training.corpora import Corpus, Question, cloze
from training.embedding import Embedder
from training.groups import Group, read_groups, write_groups
from training.inference import Floats, encoded_windows
from training.judge import Judge, open_teacher
from training.lengthening import Lengthener
from training.loop import CHECKPOINT, Training, listwise
from training.model import CrossEncoder
from training.prepare import prepare, prepare_own, read_own
from training.quality import accuracy, score
from training.recipe import Recipe, follow
from training.schedule import LENGTHS, LONG, Plan
from training.sources import VALIDATION, read_corpora, read_validation
from training.teaching import average, teach
from training.validation import compare, domains, long_documents

OTHERS = [word for word in WORDS if word not in ("tides", "moon")]


def toy_groups(count: int, seed: int) -> list[Group]:
    """Groups in which the document with the word 'tides' is relevant."""
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
def distinct(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with different scores for different pairs."""
    return str(make_model(tmp_path_factory.mktemp("distinct"), spread=0.5))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bi-encoder with random weights."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(3)
    config = CONFIGS["bert"]
    config.vocab_size, config.pad_token_id = len(WORDS) + 4, 1
    BertModel(config).save_pretrained(folder)
    make_tokenizer("bert").save_pretrained(folder)
    return str(folder)


class ByWords:
    """A bi-encoder that counts words."""

    def questions(self, texts: Sequence[str]) -> Floats:
        counts = np.array([[text.lower().split().count(word) for word in WORDS] for text in texts], np.float32) + 1e-3
        return np.asarray(counts / np.linalg.norm(counts, axis=1, keepdims=True), np.float32)

    passages = questions


SIGNALS = {"cosines": ByWords()}


class Perfect:
    """A judge that recognizes answers in the first `words` words."""

    tokenizer = make_tokenizer("bert")

    def __init__(self, words: int = 10_000) -> None:
        self.words = words

    def logits(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        return [
            float(f"of {query.split()[-1]} causes" in " ".join(text.split()[: self.words])) for query, text in pairs
        ]


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


def test_a_checkpoint_with_other_options_is_rejected(start: str, tmp_path: Path) -> None:
    groups = toy_groups(8, seed=1)
    Training(CrossEncoder(start, "cpu"), Plan(steps=2, checkpoint_every=1), groups, tmp_path).run([])
    assert (tmp_path / CHECKPOINT).exists()
    with pytest.raises(ValueError, match="other options"):
        Training(CrossEncoder(start, "cpu"), Plan(steps=3, seed=1), groups, tmp_path).run([])


def test_a_stopped_training_can_resume_with_more_steps(start: str, tmp_path: Path) -> None:
    groups = toy_groups(8, seed=1)

    class Ended(CrossEncoder):
        def logits(self, pairs: Sequence[tuple[str, str]], max_length: int, rows: int) -> torch.Tensor:
            # A real signal to a worker of pytest-xdist has killed it.
            handler = signal.getsignal(signal.SIGTERM)
            assert callable(handler)
            handler(signal.SIGTERM, None)
            return super().logits(pairs, max_length, rows)

    with pytest.raises(KeyboardInterrupt):
        Training(Ended(start, "cpu"), Plan(steps=5), groups, tmp_path).run([])
    assert torch.load(tmp_path / CHECKPOINT)["step"] == 1
    Training(CrossEncoder(start, "cpu"), Plan(steps=7, cool_down=3, checkpoint_every=7), groups, tmp_path).run([])
    assert torch.load(tmp_path / CHECKPOINT)["step"] == 7


def test_the_learning_rate_rises_stays_constant_and_falls() -> None:
    plan = Plan(steps=1000, learning_rate=1.0, cool_down=100)
    assert [plan.rate(step) for step in (0, 24, 49, 500, 900, 950, 999)] == pytest.approx(
        [0.02, 0.5, 1, 1, 1, 0.5, 0.01]
    )
    assert Plan(steps=1000, learning_rate=1.0).rate(999) == 1


def test_every_group_is_read_once_per_epoch() -> None:
    plan, count = Plan(steps=0, groups_per_step=8), 57
    steps = plan.steps_for(2 * count)
    read = [at for step in range(steps) for at in plan.reading(step, count).groups]
    assert sorted(read[:count]) == sorted(read[count : 2 * count]) == list(range(count))
    assert read[:count] != read[count : 2 * count]
    assert len(read) - 2 * count < 8
    assert LENGTHS.count(LONG) / len(LENGTHS) == 0.2


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_a_lengthened_document_is_at_the_given_place(at: float) -> None:
    lengthener = Lengthener(make_tokenizer("bert"), ["bread stock market", "plant"])
    words = lengthener.lengthened("moon causes tides", 23, at, random.Random(0)).split()
    assert len(words) == 23
    assert words.index("moon") == round(20 * at)
    assert set(words) - {"moon", "causes", "tides"} <= {"bread", "stock", "market", "plant"}
    assert lengthener.lengthened("moon causes tides", 2, at, random.Random(0)) == "moon causes"


def test_long_documents_leave_room_for_the_query() -> None:
    tokenizer = make_tokenizer("bert")
    group = Group("what causes tides", ["moon", "gravity of sea", "a " * 90], [1.0, 0.0, 0.0])
    places = set()
    for seed in range(20):
        documents = Lengthener(tokenizer, ["bread", "market and stock"]).documents(group, 60, random.Random(seed))
        assert {len(tokenizer(group.query, document)["input_ids"]) for document in documents} == {60}
        places.add(documents[0].split().index("moon"))
    assert {0, 53} < places


def test_position_embeddings_are_trained_and_word_embeddings_are_not(start: str, tmp_path: Path) -> None:
    model = CrossEncoder(start, "cpu")
    before = {name: each.clone() for name, each in model.model.state_dict().items()}
    Training(model, Plan(steps=4, learning_rate=1e-2), toy_groups(8, seed=1), tmp_path).run([])
    changed = {name for name, each in model.model.state_dict().items() if not torch.equal(each, before[name])}
    assert "bert.embeddings.position_embeddings.weight" in changed
    assert "bert.embeddings.word_embeddings.weight" not in changed


def test_the_loss_is_lower_in_the_order_of_the_targets() -> None:
    group = Group("q", ["a", "b"], [1.0, 0.0], bm25=[0.2, 1.0], cosines=[0.8, 0.5], e5=[0.9, 0.8], teacher=[2.0, 1.0])
    assert group.targets() == pytest.approx([4 + 0.5 + 3.2 + 22.5 + 1, 2.5 + 2 + 20 + 0.5])
    right = torch.tensor([3.0, -3.2])
    assert listwise(right, [group]) < listwise(right.flip(0), [group])
    # These logits differ like the targets, so the divergence is 0 and only the labels count.
    assert listwise(right, [group]) == pytest.approx(0.2 * np.mean(np.log1p(np.exp([-3.0, -3.2]))), rel=1e-5)


def test_calibration_scales_and_shifts_the_logits(tmp_path: Path) -> None:
    model, groups = CrossEncoder(str(make_model(tmp_path, spread=0.5)), "cpu"), toy_groups(30, seed=2)
    before = np.array(score(model, groups, 16))
    calibrate(model, groups, 16)
    after = np.array(score(model, groups, 16))
    # The new logits must be a linear function of the old ones.
    slope, shift = np.polyfit(before.ravel(), after.ravel(), 1)
    assert after == pytest.approx(slope * before + shift, abs=1e-2)
    assert (1 / (1 + np.exp(-after))).mean() == pytest.approx(0.25, abs=0.03)


def test_a_saved_model_gives_the_same_scores_in_the_service(start: str, tmp_path: Path) -> None:
    model, [group] = CrossEncoder(start, "cpu"), toy_groups(1, seed=4)
    expected = score(model, [group], 4)[0]
    model.save(tmp_path)
    engine = TorchEngine(locate_model(str(tmp_path), None), device="cpu", max_length=64, threads=1, precision="fp32")
    assert engine.score(engine.encode(group.query, group.documents)) == pytest.approx(expected, abs=2e-2)
    assert engine.info.activation == "sigmoid"
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"] is None


def _write(file: Path, rows: Sequence[dict[str, object]]) -> None:
    with gzip.open(file, "wt") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    """Tiny versions of some public corpora: three for training, one for validation, two that are ignored."""
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
    (folder / "broad").mkdir()
    for name in ("law_dc_code", "finance_tatqa", "ml_de_docs", "pmc_trial_title_abstract"):
        _write(
            folder / "broad" / f"{name}.jsonl.gz",
            [
                {
                    "query": f"section {at}",
                    "positives": [f"{name} {text}", f"{name} too {text}"],
                    "negatives": [f"{name}{f' {at}' * 4}. Bread and stock market of {at}."],
                }
                for at, text in enumerate(texts)
            ],
        )
    return folder


def test_groups_from_the_public_corpora(corpora: Path, tmp_path: Path) -> None:
    prepare(corpora, tmp_path / "groups", SIGNALS, questions=30, size=4, passages=1000, seed=0)
    train = list(read_groups(tmp_path / "groups" / "train.jsonl.gz"))
    held_out = list(read_groups(tmp_path / "groups" / "heldout.jsonl.gz"))
    read = ("squad", "pubmedqa", "law_dc_code")
    assert {group.source for group in train} == {f"{name}{kind}" for name in read for kind in ("", "-cloze")}
    asked = [group for group in train if group.source == "squad"]
    assert len(asked) > 20
    for group in asked:
        number = group.query.split()[-1]
        assert f"of {number} causes" in group.documents[0]
        assert not any(f"of {int(number) % 10}" in document for document in group.documents[1:])
        assert len(group.documents) == len(group.labels) == len(group.cosines) == len(group.bm25)
    assert held_out
    assert not {(group.source, group.query) for group in train} & {(group.source, group.query) for group in held_out}


def test_a_cloze_question_asks_for_the_rest_of_its_passage(corpora: Path) -> None:
    corpus, *_ = read_corpora(corpora, 1000, random.Random(0))
    sentence = "Of light and energy the plant of the sea makes bread"
    corpus.passages[0] = f"Light. Sea. {sentence}. Bread."
    asked = [
        next(each for each in cloze(corpus, random.Random(seed)).questions if each.index == 0) for seed in range(20)
    ]
    assert {each.query for each in asked} == {sentence}
    assert {each.positive for each in asked} == {"Light. Sea. Bread.", corpus.passages[0]}


def test_validation_corpora_are_not_used_in_training(corpora: Path) -> None:
    rng = random.Random(0)
    trained = {corpus.name: corpus for corpus in read_corpora(corpora, 1000, rng)}
    assert trained.keys() == {"squad", "pubmedqa", "law_dc_code"}
    assert [corpus.name for corpus in read_validation(corpora, rng)] == ["finance_tatqa"]
    assert not trained.keys() & set(VALIDATION)
    law = trained["law_dc_code"]
    [question] = [each for each in law.questions if each.query == "section 3"]
    assert law.passages[question.index].startswith("law_dc_code The moon of 3")
    assert [law.passages[at][:28] for at in question.also] == ["law_dc_code too The moon of "]
    assert [law.passages[at][:20] for at in question.negatives] == ["law_dc_code 3 3 3 3."]


def test_a_limited_corpus_keeps_the_negatives_of_its_questions() -> None:
    questions = [Question(f"q{at}", f"p{at}", at, (100 + at, 200 + at), also=(300 + at,)) for at in range(100)]
    corpus = Corpus("some", [f"p{at}" for at in range(400)], questions)
    limited = corpus.limited(40, random.Random(0))
    assert len(limited.passages) == 40
    assert len(limited.questions) == 10
    for question in limited.questions:
        at = int(question.query[1:])
        assert limited.passages[question.index] == f"p{at}"
        assert [limited.passages[each] for each in question.negatives] == [f"p{100 + at}", f"p{200 + at}"]
        assert [limited.passages[each] for each in question.also] == [f"p{300 + at}"]


def test_embeddings_are_the_mean_of_the_states(encoder: str) -> None:
    """Compared with torch in float32, text by text and without padding."""
    tokenizer, model = make_tokenizer("bert"), BertModel.from_pretrained(encoder).eval()
    texts = ["moon " * 40, "the sea", "what causes tides", "bread"]
    embedder = Embedder(encoder, "cpu", ("moon ", ""))
    with torch.inference_mode():
        means = torch.stack(
            [model(**tokenizer(each, return_tensors="pt")).last_hidden_state[0].mean(0) for each in texts]
        )
    expected = torch.nn.functional.normalize(means, dim=1).numpy()
    assert embedder.passages(texts) == pytest.approx(expected, abs=0.03)
    assert embedder.questions(["sea"]) == pytest.approx(embedder.passages(["moon sea"]), abs=1e-6)


def test_validation_measures_the_gain_over_bm25(corpora: Path) -> None:
    [(name, topics)] = domains(corpora, 5, seed=0)
    assert (name, len(topics)) == ("finance_tatqa", 5)
    for topic in topics:
        assert len(topic.documents) == 40
        assert len(topic.qrels.keys() & topic.documents.keys()) == 2
    figures = compare(name, topics, Perfect())  # type: ignore[arg-type]
    assert figures.model == 1 > figures.bm25
    assert figures.gain == pytest.approx(1 - figures.bm25)
    fused = compare(name, topics, Perfect(), fusion_weight=100)  # type: ignore[arg-type]
    assert abs(fused.model - figures.bm25) < 0.1 < figures.gain, "so much weight leaves the order of BM25"


def test_an_exported_model_can_teach(tmp_path: Path, distinct: str) -> None:
    export(Path(distinct), tmp_path / "out")
    pairs = [("what causes tides", "the moon"), ("moon", "bread " * 60), ("moon", "the sea"), ("what causes", "plant")]
    exported, original = (open_teacher(model, "cpu", 64) for model in (str(tmp_path / "out"), distinct))
    assert exported.logits(pairs) == pytest.approx(original.logits(pairs), abs=0.15)


def test_validation_shows_how_much_of_long_documents_is_read(corpora: Path) -> None:
    [(_, topics)] = domains(corpora, 5, seed=0)
    whole = long_documents(topics, Perfect(), seed=0)  # type: ignore[arg-type]
    assert whole == {"short": 1, "answer first": 1, "answer last": 1}
    half = long_documents(topics, Perfect(words=100), seed=0)  # type: ignore[arg-type]
    assert half["answer first"] == 1 > half["answer last"]


def test_a_judge_gives_the_scores_of_the_model(start: str, distinct: str) -> None:
    pairs = [("what causes tides", "the moon"), ("moon", "bread " * 60), ("sea", "plant and sea")]
    expected = CrossEncoder(start, "cpu").logits(pairs, 64, 8).tolist()
    assert Judge(start, "cpu", 64).logits(pairs) == pytest.approx(expected, abs=0.01)
    # These scores differ by 0.4 and more, and by bfloat16 by less than 0.1.
    expected = CrossEncoder(distinct, "cpu").logits(pairs, 64, 8).tolist()
    assert Judge(distinct, "cpu", 64).logits(pairs) == pytest.approx(expected, abs=0.15)


def test_windows_cover_the_whole_document_and_the_best_one_counts(distinct: str) -> None:
    judge = Judge(distinct, "cpu", 32, in_windows=True)
    pairs = [("what causes tides", "bread " * 60 + "the moon"), ("what causes tides", "the moon")]
    tokens, pair_of = encoded_windows(judge.tokenizer, pairs, 32)
    assert pair_of == [0] * (len(tokens) - 1) + [1]
    texts = [judge.tokenizer.decode(each["input_ids"]) for each in tokens]
    assert all("tides" in text for text in texts)
    assert ["moon" in text for text in texts] == [False] * (len(texts) - 2) + [True, True]
    windows = [text.split("[SEP]")[1].strip() for text in texts]
    each = Judge(distinct, "cpu", 32).logits([("what causes tides", window) for window in windows])
    assert judge.logits(pairs) == pytest.approx([max(each[:-1]), each[-1]], abs=0.01)


def test_the_validate_command_prints_the_gains(corpora: Path, start: str) -> None:
    answer = CliRunner().invoke(
        cli, ["validate", start, "--data", str(corpora), "--queries", "3", "--device", "cpu", "--max-length", "64"]
    )
    assert answer.exit_code == 0, answer.output
    for wanted in ("finance_tatqa", "mean", "worst", "answer last"):
        assert wanted in answer.output


def test_groups_from_own_texts(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    rows = [
        {"query": "what causes tides", "positives": ["the moon", "gravity of the moon"], "negatives": ["stock market"]},
        *({"query": f"{word} of plant", "positive": f"a plant and {word}"} for word in OTHERS),
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    prepare_own(file, tmp_path / "groups", SIGNALS, size=4, seed=0)
    both = [*read_groups(tmp_path / "groups/train.jsonl.gz"), *read_groups(tmp_path / "groups/heldout.jsonl.gz")]
    tides = [group for group in both if group.query == "what causes tides"]
    assert sorted(group.documents[0] for group in tides) == ["gravity of the moon", "the moon"]
    assert all("stock market" in group.documents for group in tides)
    assert not any({"the moon", "gravity of the moon"} <= set(group.documents) for group in tides)
    assert all(len(group.documents) == 4 for group in both)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "own.jsonl:2: invalid JSON"),
        ("[]", "own.jsonl:2: expected a JSON object"),
        ('{"query": "a"}', "own.jsonl:2: query and positives"),
        ('{"query": "", "positives": "b"}', "own.jsonl:2: query and positives"),
        ('{"query": "a", "positives": [1]}', "own.jsonl:2: positives: expected a text or a list of texts"),
    ],
)
def test_errors_name_the_line_and_the_field(line: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(f'{{"query": "a", "positives": "b"}}\n{line}\n')
    with pytest.raises(ValueError, match=message):
        read_own(file)


def test_the_command_reports_an_error_in_one_line(encoder: str, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text("{}\n")
    answer = CliRunner().invoke(cli, ["prepare-own", str(file), "--output", str(tmp_path / "out"), "--base", encoder])
    assert answer.exit_code == 1
    assert answer.output.strip().splitlines()[-1].startswith("error: ")
    assert "own.jsonl:1" in answer.output


def test_teachers_set_targets_and_select_the_hardest_documents(start: str) -> None:
    teachers = [Perfect(), Judge(start, "cpu", 64)]
    groups = toy_groups(3, seed=5)
    groups[0].query, groups[0].documents[2] = "what causes 7", "moon of 7 causes tides"
    pairs = [(group.query, document) for group in groups for document in group.documents]
    expected = np.array([teacher.logits(pairs) for teacher in teachers]).mean(0).reshape(3, 4)
    taught = list(teach(groups, teachers, keep=2))  # type: ignore[arg-type]
    assert taught[0].documents[1] == "moon of 7 causes tides"
    for own, group in zip(expected, taught, strict=True):
        assert group.labels == [1.0, 0.0]
        assert group.teacher == pytest.approx([own[0], own[1:].max()], abs=1e-3)
        assert group.targets() == pytest.approx([4 + 0.5 * group.teacher[0], 0.5 * group.teacher[1]])


def test_averaging_models_averages_their_weights(start: str, tmp_path: Path) -> None:
    models = [CrossEncoder(start, "cpu") for _ in range(2)]
    weight = models[0].model.classifier.weight.detach().clone()
    with torch.no_grad():
        models[1].model.classifier.weight.add_(1)
    torch.testing.assert_close(average(models).model.classifier.weight.detach(), weight + 0.5)


def test_the_whole_recipe_in_one_command(corpora: Path, encoder: str, tmp_path: Path) -> None:
    recipe = Recipe(
        questions=10, passages=30, size=3, groups_per_step=8, rows=32, learning_rate=1e-3, seeds=2, teachers=1,
        teacher_layers=3, pool=5,
    )  # fmt: skip
    bins = follow(recipe, corpora, tmp_path / "out", encoder, encoder, None, "cpu", 0)
    assert sum(each.pairs for each in bins) > 0
    model = CrossEncoder(str(tmp_path / "out" / "model"), "cpu")
    assert model.model.config.num_hidden_layers == 2
    made = (tmp_path / "out" / "student-0" / "model.safetensors").stat().st_mtime_ns
    follow(recipe, corpora, tmp_path / "out", encoder, encoder, None, "cpu", 0)
    assert (tmp_path / "out" / "student-0" / "model.safetensors").stat().st_mtime_ns == made


def test_written_groups_are_read_back_unchanged(tmp_path: Path) -> None:
    groups = toy_groups(3, seed=6)
    assert write_groups(groups, tmp_path / "groups.jsonl.gz") == 3
    assert list(read_groups(tmp_path / "groups.jsonl.gz")) == groups

"""The embedded multilingual model, `RERANKER_MODEL=embedded:multilingual`."""

import pytest

from app.engines.load import load_artefact
from app.engines.models.source import MULTILINGUAL, locate_model
from app.engines.protocol import Engine
from app.errors import StartupError

# The answer is at index 1; the other documents have its words or its subject.
QUESTIONS = {
    "en": (
        "Which planet has the most moons?",
        "Mars is a planet with two moons, Phobos and Deimos.",
        "Saturn has 146 confirmed moons, more than any other planet.",
        "The Moon is Earth's only natural satellite.",
    ),
    "de": (
        "Warum ist der Himmel blau?",
        "Der Himmel über Berlin ist ein Film von Wim Wenders.",
        "Der Himmel erscheint blau, weil die Luft kurzwelliges Licht stärker streut als langwelliges.",
        "Blau ist eine der drei Grundfarben.",
    ),
    "es": (
        "¿Por qué flota el hielo en el agua?",
        "El hielo se vende en bolsas de dos kilos.",
        "Al congelarse, el agua se expande y el hielo pierde densidad, por eso queda en la superficie.",
        "El agua cubre la mayor parte de la Tierra.",
    ),
    "ru": (
        "Кто изобрёл телефон?",
        "Телефон стоит на столе у директора.",
        "Патент на телефон получил в 1876 году Александр Белл, которого считают его изобретателем.",
        "Радио изобрели позже телеграфа.",
    ),
    "zh": (
        "为什么会有四季？",
        "夏天的白天比冬天长。",
        "地球的自转轴是倾斜的，公转时太阳直射点南北移动，因此形成四季。",
        "春天的花很美。",
    ),
    "ar": (
        "لماذا ماء البحر مالح؟",
        "البحر المتوسط يقع بين أوروبا وأفريقيا.",
        "ماء البحر مالح لأن الأنهار تحمل الأملاح من الصخور إلى البحر، ويتبخر الماء وتبقى الأملاح.",
        "الماء العذب ضروري للحياة.",
    ),
    "hi": (
        "भारत की राजधानी क्या है?",
        "मुंबई भारत का सबसे बड़ा शहर है।",
        "नई दिल्ली भारत की राजधानी है, जहाँ संसद भवन है।",
        "भारत में कई भाषाएँ बोली जाती हैं।",
    ),
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_artefact(MULTILINGUAL, None, 2)


@pytest.mark.parametrize("language", QUESTIONS)
def test_the_answer_is_first_in_every_language(engine: Engine, language: str) -> None:
    question, *documents = QUESTIONS[language]
    logits = engine.score(engine.encode(question, documents))
    assert max(range(len(logits)), key=lambda index: logits[index]) == 1, logits


def test_unknown_embedded_models_are_refused_by_name() -> None:
    with pytest.raises(StartupError, match=r"embedded:klingon.*embedded:multilingual"):
        locate_model("embedded:klingon", None)

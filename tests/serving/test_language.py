"""A model for English warns when most of what it reads is in another language."""

import logging
from dataclasses import replace

import pytest

from app.serving.language import ENOUGH, is_english
from tests.conftest import Serve
from tests.fakes import INFO, FakeEngine

TEXTS = {
    "en": "Saturn has 146 confirmed moons, more than any other planet of the Solar System.",
    "de": "Der Saturn hat 146 bestätigte Monde und damit mehr als jeder andere Planet.",
    "es": "Saturno tiene 146 lunas confirmadas, más que los demás planetas del sistema solar.",
    "fr": "Saturne compte 146 lunes confirmées, plus que les autres planètes du système.",
    "ru": "У Сатурна 146 подтверждённых спутников, больше, чем у других планет.",
    "zh": "土星有146颗已确认的卫星，比其他任何行星都多。",
    "ar": "لكوكب زحل 146 قمرًا مؤكدًا، أكثر من أي كوكب آخر.",
    "hi": "शनि के 146 पुष्ट उपग्रह हैं, जो किसी भी अन्य ग्रह से अधिक हैं।",
    "ja": "土星には確認された衛星が146個あり、他のどの惑星よりも多い。",
}


@pytest.mark.parametrize("language", TEXTS)
def test_texts_in_english_are_recognized(language: str) -> None:
    assert is_english(TEXTS[language]) is (language == "en")


@pytest.mark.parametrize("text", ["", "404", "for (int i = 0; i < n; ++i) { sum += a[i]; }", "USB-C Hub 7 Port Anker"])
def test_texts_without_words_of_a_language_do_not_count(text: str) -> None:
    assert is_english(text) is None


@pytest.mark.parametrize(
    ("languages", "texts", "warnings"),
    [
        (("en",), ["de"], 1),
        (("en",), ["zh", "ru", "en"], 1),
        (("en",), ["en", "en", "de"], 0),
        ((), ["de"], 0),
    ],
)
async def test_the_warning_comes_once(
    serve: Serve,
    engine: FakeEngine,
    caplog: pytest.LogCaptureFixture,
    languages: tuple[str, ...],
    texts: list[str],
    warnings: int,
) -> None:
    engine.info = replace(INFO, languages=languages)
    with caplog.at_level(logging.WARNING):
        async with serve() as client:
            for number in range(2 * ENOUGH):
                await client.post("/rerank", json={"query": "moons", "documents": [TEXTS[texts[number % len(texts)]]]})
            figures = (await client.get("/metrics")).text
    logged = [record for record in caplog.records if "embedded:multilingual" in record.message]
    assert len(logged) == warnings
    others = sum(texts[number % len(texts)] != "en" for number in range(2 * ENOUGH)) if languages else 0
    assert (f'reranker_sampled_documents_total{{language="other"}} {float(others)}' in figures) == (others > 0)

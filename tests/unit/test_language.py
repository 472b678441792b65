"""Languages of texts, and what is too little to tell."""

import pytest

from models.text.language import known_languages, languages_of

SENTENCES = {
    "en": "Could you tell me when the shop opens tomorrow morning?",
    "de": "Können Sie mir sagen, wann der Laden morgen früh öffnet?",
    "fr": "Pouvez-vous me dire à quelle heure le magasin ouvre demain matin ?",
    "es": "¿Me puede decir a qué hora abre la tienda mañana por la mañana?",
    "zh": "请问商店明天早上几点开门？谢谢您的帮助。",
    "ja": "明日の朝、お店は何時に開きますか？教えてください。",
    "ko": "내일 아침에 가게가 몇 시에 여는지 알려 주시겠어요?",
    "ru": "Не могли бы вы сказать, когда завтра утром открывается магазин?",
    "hi": "क्या आप मुझे बता सकते हैं कि कल सुबह दुकान कब खुलेगी?",
}


def test_languages() -> None:
    found = languages_of(SENTENCES.values())
    assert [language for language, _ in found] == list(SENTENCES)
    assert all(0.5 <= probability <= 1.0 for _, probability in found)


@pytest.mark.parametrize("text", ["", "  \n", "?!?", "12345 67890", "😀😀😀", "ok", "hm, ok", "\ud800",
                                  '{"a": 1, "b": [2, 3]}', "SELECT a FROM t WHERE b = 1;"])  # fmt: skip
def test_what_cannot_be_known_is_undetermined(text: str) -> None:
    [(language, _)] = languages_of([text])
    assert language == "und"


def test_a_long_text_is_judged_by_pieces_from_all_of_it() -> None:
    german = SENTENCES["de"] + "\n"
    assert languages_of(["1 " * 200 + german * 2000])[0][0] == "de"
    assert languages_of(["." * 5_000_000 + german * 100_000])[0][0] == "de"


def test_the_known_languages_are_what_is_returned() -> None:
    assert {*SENTENCES, "und"} <= known_languages()
    assert "zxx" not in known_languages()

"""How answers score: one value in [0, 1] a row; a task's score is their mean."""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ella_cli.tasks.rows import Row
from ella_cli.tasks.sari import sari
from ella_cli.tasks.spec import TaskSpec, normal_form

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

# Scripts written without spaces: each character is a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003134f"
)
_LONE_LETTER = re.compile(r"\W*([^\W\d_])(?![^\W_])")
_CODE_LITERAL = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)


def score_rows(
    spec: TaskSpec, predictions: Sequence[str], rows: Sequence[Row]
) -> tuple[float, ...]:
    """Scores of `predictions` against the rows' answers, in order, each in [0, 1].

    accuracy: equal after `normalise`, O-LoRA's exact match; with `compare: first-letter` the
        letters chosen are equal (TRACE's ScienceQA, whose answers go on to explain).
    rouge-l: ROUGE-L F1 (Lin 2004) by rouge-score, over words of any script.
    edit-similarity: 1 - insertions and deletions / both lengths (rapidfuzz's ratio, fuzzywuzzy's
        in TRACE), after Py150's literal marks are put back to code.
    sari: Xu et al. 2016, with the row's whole text as the source, as TRACE does.
    """
    assert len(predictions) == len(rows), f"{len(predictions)} predictions for {len(rows)} rows"
    score = _scorer(spec)
    return tuple(score(one, row) for one, row in zip(predictions, rows, strict=True))


def normalise(text: str) -> str:
    """Lower case, without punctuation, with single spaces: the published protocol's exact match.

    A point or comma between two digits and a minus before one stay: 2.5 is not 25.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    folded = re.sub(r"(?<!\w)-(?=\d)|(?<=\d)[.,](?=\d)", lambda kept: _KEPT[kept.group()], folded)
    spaced = _patterns().between.sub(" ", folded)
    for mark, stand_in in _KEPT.items():
        spaced = spaced.replace(stand_in, mark)
    return " ".join(spaced.split())


# Private-use characters that stand for the marks kept while punctuation goes.
_KEPT = {"-": "\ue000", ".": "\ue001", ",": "\ue002"}


def words(text: str) -> list[str]:
    """Words of any script, lower case; one character each where a script has no spaces.

    rouge-score's own tokenizer keeps a-z and 0-9 only: Chinese would score 0 against itself, and
    German would lose its umlauts.
    """
    return _patterns().word.findall(text.casefold())


class _Patterns(NamedTuple):
    word: re.Pattern[str]
    between: re.Pattern[str]  # one character that is neither of a word nor space nor kept


def _is_selector(code: int) -> bool:
    """Whether it only says how the sign before it is drawn, as after an emoji."""
    return 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF


@functools.cache
def _patterns() -> _Patterns:
    # Vowel signs and accents: in many scripts no letter of their own, yet half of a word.
    marks = "".join(
        f"\\U{code:08x}"
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) in ("Mn", "Mc") and not _is_selector(code)
    )
    return _Patterns(
        re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])(?:[^\W_]|[{marks}]))+"),
        re.compile(rf"(?![{marks}])[^\w\s\ue000-\ue002]|_"),
    )


def _scorer(spec: TaskSpec) -> Callable[[str, Row], float]:
    match spec.metric:
        case "accuracy" | None:
            key = _comparison(spec)
            return lambda prediction, row: float(_same(prediction, row.answer, key))
        case "rouge-l":
            rouge = _rouge()
            return lambda prediction, row: (
                float(rouge.score(row.answer, prediction)["rougeL"].fmeasure)
                if words(row.answer) or not row.answer.strip()
                # Of an answer such as "?!" no word is left to find.
                else float(normal_form(prediction) == normal_form(row.answer))
            )
        case "edit-similarity":
            return lambda prediction, row: edit_similarity(prediction, row.answer)
        case "sari":
            return lambda prediction, row: sari(row.text, prediction, row.answer)


def _same(prediction: str, answer: str, key: Callable[[str], str]) -> bool:
    # Of an answer such as "+" nothing is left to compare.
    if not key(answer):
        key = normal_form
    return key(prediction) == key(answer)


def _comparison(spec: TaskSpec) -> Callable[[str], str]:
    if spec.compare == "first-letter":
        return _letter
    plain = {normalise(label) for label in spec.labels}
    if len(plain) < len(spec.labels) or "" in plain:
        # Labels such as "+" and "-", or "C" and "C++", differ in punctuation only.
        return normal_form
    return normalise


def _letter(text: str) -> str:
    """The letter an answer opens with, if it stands alone; else the whole answer."""
    opening = _LONE_LETTER.match(text)
    return opening.group(1).upper() if opening else normalise(text)


def edit_similarity(prediction: str, answer: str) -> float:
    """1 - (insertions + deletions) / (both lengths), in [0, 1]; two empty texts are equal."""
    from rapidfuzz.fuzz import ratio

    return float(ratio(_code(prediction.strip()), _code(answer.strip()))) / 100


def _code(text: str) -> str:
    """Py150's literal marks turned into literals, as TRACE does before it compares."""
    text = text.replace("<NUM_LIT>", "0").replace("<STR_LIT>", "").replace("<CHAR_LIT>", "")
    return _CODE_LITERAL.sub(r"\1", text)


class _Words:
    def tokenize(self, text: str) -> list[str]:
        return words(text)


def _rouge() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())

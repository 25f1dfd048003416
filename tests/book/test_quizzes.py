"""Quiz questions: every chapter has some, each has one answer, and nothing gives it away."""

import re
from collections import Counter

import pytest

from tools import quizzes
from tools.layout import REPOSITORY, Book, BookError

SOURCE = (REPOSITORY / "chapters" / quizzes.PAGE).read_text("utf8")
QUESTIONS = quizzes.read(SOURCE)
ONE = "## Chapter 3\n\n### 3.1\n\nWhy?\n\n- [ ] no\n- [x] yes\n- [ ] perhaps\n\nBecause.\n"


def test_a_question_is_read_with_its_answer() -> None:
    (question,) = quizzes.read(ONE)[3]
    assert (question.number, question.text, question.why) == ("3.1", "Why?", "Because.")
    assert question.choices[question.right] == "yes"
    assert question.asked().splitlines()[-3:] == ["- **a** no", "- **b** yes", "- **c** perhaps"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[ ] no", "[x] no", "3 choices, 2 of them ticked"),
        ("[x] yes", "[ ] yes", "3 choices, 0 of them ticked"),
        ("- [ ] no\n", "", "2 choices, 1 of them ticked"),
        ("### 3.1", "### 4.1", "quiz 4.1 of chapter 3"),
        ("Because.\n", "", "quiz 3.1 of chapter 3 needs"),
        ("Why?\n", "", "quiz 3.1 of chapter 3 needs"),
    ],
)
def test_a_question_that_cannot_be_used_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(BookError, match=re.escape(message)):
        quizzes.read(ONE.replace(old, new))


def test_every_chapter_has_questions_in_order() -> None:
    assert list(QUESTIONS) == [int(source.name[:2]) for source in Book().sources()]
    for chapter, questions in QUESTIONS.items():
        assert len(questions) >= 4
        assert [q.number for q in questions] == [f"{chapter}.{i}" for i in range(1, len(questions) + 1)]
    # nothing in the source was passed over
    assert SOURCE.count("\n### ") == sum(map(len, QUESTIONS.values())) == SOURCE.count("[x]")


def test_neither_place_nor_length_gives_the_answer_away() -> None:
    every = [question for questions in QUESTIONS.values() for question in questions]
    places = Counter(question.right for question in every)
    longest = sum(max(q.choices, key=len) == q.choices[q.right] for q in every)
    assert max(places.values()) < 0.4 * len(every)
    assert longest < 0.4 * len(every)
    assert all(len(set(question.choices)) == len(question.choices) for question in every)


def test_numbers_in_the_teaching_guide_are_questions() -> None:
    guide = (REPOSITORY / "book" / "teaching.md").read_text("utf8")
    known = {question.number for questions in QUESTIONS.values() for question in questions}
    named = set(re.findall(r"\bQ(\d+\.\d+)", guide))
    assert named <= known
    # of every chapter
    assert {int(number.partition(".")[0]) for number in named} == set(QUESTIONS)

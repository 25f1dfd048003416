"""Quiz questions: every chapter has some, each has one answer, and no answer reaches a student."""

import html
import re
from collections import Counter
from pathlib import Path

import pytest

from tools import quizzes
from tools.layout import REPOSITORY, Book

SOURCE = (REPOSITORY / "chapters" / quizzes.PAGE).read_text("utf8")
QUESTIONS = quizzes.read(SOURCE)
ONE = "## Chapter 3\n\n### 3.1\n\nWhy?\n\n- [ ] no\n- [x] yes\n- [ ] perhaps\n\nBecause.\n"


def words(text: str) -> str:
    """Plain text in one line, without what Markdown and HTML do to it."""
    bare = re.sub(r"\\n|[*`]|</?[a-z][^>]*>", " ", html.unescape(text)).replace("’", "'")
    return " ".join(bare.split())


def plainest(text: str) -> str:
    """The longest stretch without a formula: the same wherever the text is shown."""
    return max(re.split(r"\$[^$]*\$|[\"'`*(){}\[\]:]", " ".join(text.split())), key=len).strip()


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
    with pytest.raises(quizzes.QuizError, match=re.escape(message)):
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


def test_the_page_is_made_from_the_source() -> None:
    assert (REPOSITORY / "book" / quizzes.PAGE).read_text("utf8") == quizzes.text(Book())


def test_numbers_in_the_teaching_guide_are_questions() -> None:
    guide = (REPOSITORY / "book" / "teaching.md").read_text("utf8")
    known = {question.number for questions in QUESTIONS.values() for question in questions}
    named = set(re.findall(r"\bQ(\d+\.\d+)", guide))
    assert len(named) > 20
    assert named <= known


def test_no_answer_reaches_the_site_and_all_reach_instructors(built: Path) -> None:
    instructor = words((built.parent / "editions" / "instructor" / quizzes.PAGE).read_text("utf8"))
    page = words((built / "book" / "quizzes.html").read_text("utf8"))
    folders = (built / "book", built / "slides", built / "student", built / "_sources")
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files += [*(built.parent / "editions" / "student").glob("*"), built / "searchindex.js"]
    public = {path: words(path.read_text("utf8")) for path in files}
    assert len(public) > 60
    for question in (question for questions in QUESTIONS.values() for question in questions):
        reason = words(plainest(question.why))
        assert len(reason) > 20
        assert reason in instructor
        assert f"Answer: {'abcd'[question.right]}." in instructor
        assert words(plainest(question.text)) in page
        assert not [path.name for path, text in public.items() if reason in text], question.number

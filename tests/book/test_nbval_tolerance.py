"""The comparison behind nbval: text exact, numbers within a tolerance where a cell asks for it."""

import copy

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tools.nbval_tolerance import Tolerance, differences
from tools.notebook import GLUED, clean

EXACT = Tolerance()
TWO_HUNDREDTHS = Tolerance("trained", abs=0.02)
ROUNDED = Tolerance("rounding")


def text(content: str) -> list:
    return [new_output("stream", name="stdout", text=content)]


def agree(stored: str, new: str, tolerance: Tolerance) -> bool:
    return not list(differences(text(stored), text(new), tolerance))


@pytest.mark.parametrize(
    ("stored", "new", "tolerance", "expected"),
    [
        ("rate 0.910", "rate 0.910", EXACT, True),
        ("rate 0.910", "rate 0.911", EXACT, False),
        ("rate 0.910", "rate  0.910", EXACT, False),
        ("rate 0.91", "rate 0.93", TWO_HUNDREDTHS, True),
        ("rate 0.91", "rate 0.94", TWO_HUNDREDTHS, False),
        ("rate 0.91", "loss 0.91", TWO_HUNDREDTHS, False),
        ("rate 0.91", "rate 0.91 0.91", TWO_HUNDREDTHS, False),
        ("rate 0.91", "rate nan", TWO_HUNDREDTHS, False),
        ("rate -0.01", "rate 0.01", TWO_HUNDREDTHS, True),
        ("rate −0.5", "rate 0.5", TWO_HUNDREDTHS, False),
        ("<td>0.5</td><td>7</td>", "<td>0.51</td><td>7</td>", TWO_HUNDREDTHS, True),
        ("1,000 rows", "1,090 rows", Tolerance("trained", rel=0.1), True),
        ("1,000 rows", "1,200 rows", Tolerance("trained", rel=0.1), False),
        ("loss 1e-4", "loss 1.05e-4", Tolerance("trained", rel=0.1), True),
        ("loss 0.0", "loss 0.1", Tolerance("trained", rel=0.1), False),
        ("  9.9", " 10.1", Tolerance("trained", rel=0.1), True),  # one space fewer before the wider number
        ("norm 1.234", "norm 1.235", ROUNDED, True),
        ("norm 1.234", "norm 1.236", ROUNDED, False),
        ("norm 12345.6", "norm 12346.8", ROUNDED, True),
        ("differs by 6e-9", "differs by 9e-9", ROUNDED, False),
        ("differs by 6e-9", "differs by 9e-9", Tolerance("rounding", abs=1e-8), True),
        ("93 %", "94 %", ROUNDED, True),
        ("93 %", "95 %", ROUNDED, False),
        ("1,000 rows", "1,002 rows", ROUNDED, False),
        ("layer2 3", "layer3 3", Tolerance("trained", abs=5), False),
    ],
)
def test_text(stored: str, new: str, tolerance: Tolerance, expected: bool) -> None:
    assert agree(stored, new, tolerance) is expected


def test_message_names_the_numbers() -> None:
    (reason,) = differences(text("rate 0.91"), text("rate 0.99"), TWO_HUNDREDTHS)
    assert reason == "output 1, stdout: 0.91 became 0.99; a trained number may differ by 0.02 here"


def test_images_are_not_compared_but_must_be_there() -> None:
    image, other = (new_output("display_data", {"image/png": pixels}) for pixels in ("aa", "bb"))
    assert not list(differences([image], [other], EXACT))
    assert list(differences([image], [], EXACT))
    assert list(differences([], [image], EXACT))


def test_new_warning_is_a_difference() -> None:
    warning = new_output("stream", name="stderr", text="UserWarning: odd")
    lines = list(differences(text("1"), [*text("1"), warning], EXACT))
    assert any("UserWarning: odd" in line for line in lines)


def test_a_glued_number_has_all_its_digits_and_no_room_for_the_last_one() -> None:
    glued = [[new_output("display_data", {GLUED: text})] for text in ("0.5", "0.50004", "0.5002")]
    assert not list(differences(glued[0], glued[1], ROUNDED))
    assert list(differences(glued[0], glued[2], ROUNDED))


@pytest.mark.parametrize(
    "marks",
    [
        {"kind": "trained", "absolute": 1},
        {"kind": "trained", "abs": "0.1"},
        {"kind": "trained", "abs": -1},
        {"kind": "trained"},
        {"kind": "exact", "abs": 0.1},
        {"kind": "other"},
        {"abs": 0.02},
        0.02,
    ],
)
def test_wrong_marks_are_refused(marks: object) -> None:
    with pytest.raises(ValueError, match=r"expected {kind: exact}, {kind: rounding} or"):
        Tolerance.of({"nbval": marks})


def test_what_one_stream_printed_is_one_output_however_often_it_was_flushed() -> None:
    parts = [*text("rate 0."), *text("91\n"), new_output("stream", name="stderr", text="odd")]
    whole = [*text("rate 0.91\n"), new_output("stream", name="stderr", text="odd")]
    assert not list(differences(whole, parts, EXACT))
    assert list(differences(whole, [*parts, *text("more")], EXACT))


def test_progress_bars_of_widgets_are_not_compared() -> None:
    widget = "application/vnd.jupyter.widget-view+json"
    bars = [new_output("display_data", {widget: {"model_id": name}, "text/plain": name}) for name in "ab"]
    shown = new_output("stream", name="stdout", text="1\n")
    assert not list(differences([bars[0], shown], [bars[1], shown], EXACT))
    assert not list(differences([shown], [bars[1], shown], EXACT))
    other = new_output("stream", name="stdout", text="2\n")
    assert list(differences([bars[0], shown], [bars[1], other], EXACT))


@pytest.mark.parametrize(
    ("shown", "kept"), [("np.float64(0.5)", "0.5"), ("0.5", "0.5"), ("'f(1)'", "'f(1)'")]
)
def test_glued_numbers_lose_numpys_name_for_their_type(shown: str, kept: str) -> None:
    """In the notebook, so that the text can format them, and so also in the comparison."""
    fresh = new_output("display_data", data={GLUED: shown})
    notebook = new_notebook(cells=[new_code_cell("glue", outputs=[copy.deepcopy(fresh)])])
    clean(notebook)
    stored = notebook.cells[0].outputs
    assert stored[0].data[GLUED] == kept
    assert not list(differences(stored, [fresh], EXACT))

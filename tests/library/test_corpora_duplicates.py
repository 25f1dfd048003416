"""Near-duplicates: what counts as one, and that the cheap way finds them."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lib.corpora.duplicates import first_of_each


def lines(begin: int, end: int) -> list[str]:
    return [f"value_{i} = compute({i})" for i in range(begin, end)]


def share(a: str, b: str) -> float:
    one, other = ({line.strip() for line in text.split("\n")} - {""} for text in (a, b))
    return len(one & other) / len(one | other)


def test_copies_and_near_copies_go_and_the_first_stays():
    base = lines(0, 100)
    texts = [
        "\n".join(base),
        "  \n\n".join(f"    {line}" for line in base),  # other white space
        "\n".join([*base[:95], *lines(200, 205)]),  # 95 of 105 lines shared
        "\n".join(reversed(base)),  # another order
        "\n".join([*base[:80], *lines(300, 320)]),  # 80 of 120
        "\n".join(base[:50]),
    ]
    assert first_of_each(texts) == [0, 4, 5]
    assert first_of_each(texts, similarity=0.6) == [0, 5]
    assert first_of_each(texts, similarity=1) == [0, 2, 4, 5]


@pytest.mark.parametrize("blank", ["", " \n\t"])
def test_texts_without_a_line_are_copies_of_each_other_alone(blank):
    assert first_of_each([blank, "a", " ", "a\n", "b"]) == [0, 1, 4]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), n=st.integers(2, 12))
def test_it_does_what_comparing_every_pair_does(seed, n):
    dice = random.Random(seed)
    base = lines(0, 60)
    texts = []
    for i in range(n):
        kept = dice.sample(base, dice.choice([20, 50, 56, 58, 60]))
        texts.append("\n".join([*kept, *lines(1000 * i, 1000 * i + dice.randrange(4))]))
    expected = []
    for i, text in enumerate(texts):
        if all(share(text, texts[j]) < 0.8 for j in expected):
            expected.append(i)
    assert first_of_each(texts) == expected


def test_the_same_texts_give_the_same_whatever_came_before():
    texts = ["\n".join(lines(i, i + 40 + i % 7)) for i in range(0, 300, 3)]
    assert first_of_each(texts) == first_of_each(texts)
    # a text at the end moves none before it
    assert first_of_each([*texts, texts[0]]) == first_of_each(texts)


@pytest.mark.parametrize("similarity", [0, -1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(similarity):
    with pytest.raises(ValueError, match=r"similarity is .*; expected above 0, at most 1"):
        first_of_each(["a"], similarity)

"""Concepts of source code: against Python's own tokenizer, and by hand."""

import io
import json
import textwrap
import tokenize

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_fixtures import tokenizer

import sae_lib.corpora
from sae_experiments import concepts
from sae_experiments.concepts import NAMES, code_concepts, places
from sae_lib.language_models.byte_vocabulary import token_bytes


def labels_of(text, length=None):
    """Labels by concept of a text of one-byte tokens, in one block or in blocks of ``length``."""
    ids = tokenizer()(text, add_special_tokens=False).input_ids
    length = length or len(ids)
    blocks = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    found = code_concepts(blocks, tokenizer())
    return {name: found[..., i].flatten().numpy() for i, name in enumerate(NAMES)}


def marked(text, flags):
    """The characters of an ASCII text that are labelled."""
    return "".join(character for character, flag in zip(text, flags, strict=True) if flag)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_bytes_of_tokens_make_up_the_text(text):
    ids = tokenizer()(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert b"".join(token_bytes(tokenizer(), ids)) == text.encode()


def by_pythons_tokenizer(source):
    """Strings, comments and depth of every byte, from ``tokenize``."""
    lines = source.encode().splitlines(keepends=True)
    begins = np.cumsum([0, *map(len, lines)])
    n = begins[-1]
    string, comment, step = np.zeros(n, bool), np.zeros(n, bool), np.zeros(n + 1, int)

    def at(place):
        row, column = place
        return begins[row - 1] + len(source.splitlines(keepends=True)[row - 1][:column].encode())

    opened = []
    names = dict(tokenize.tok_name)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = names[token.type]
        if kind == "STRING":
            prefix = len(token.string) - len(token.string.lstrip("rbfuRBFU"))
            string[at(token.start) + prefix : at(token.end)] = True
        elif kind == "FSTRING_START":
            opened.append(at(token.end) - len(token.string.lstrip("rbfuRBFU")))
        elif kind == "FSTRING_END":
            string[opened.pop() : at(token.end)] = True
        elif kind == "COMMENT":
            comment[at(token.start) : at(token.end)] = True
        elif kind == "OP" and token.string in "([{":
            step[at(token.end)] += 1
        elif kind == "OP" and token.string in ")]}":
            step[at(token.start)] -= 1
    return string, comment, step.cumsum()[:n]


@pytest.mark.parametrize("module", [json.decoder, textwrap, tokenize, sae_lib.corpora])
def test_places_are_those_of_pythons_tokenizer(module):
    with open(module.__file__, encoding="utf8") as file:
        source = file.read()
    string, comment, depth = by_pythons_tokenizer(source)
    found = places(source.encode())
    np.testing.assert_array_equal(found.string, string)
    np.testing.assert_array_equal(found.comment, comment)
    # inside f-strings brackets of expressions are string to us
    np.testing.assert_array_equal(found.depth[~string], depth[~string])


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab'\"\\#()[]\n é.", max_size=60))
def test_any_text_is_read(text):
    found = places(text.encode())
    assert all(len(array) == len(text.encode()) for array in vars(found).values())
    assert (found.depth >= 0).all()
    assert not (found.string & found.comment).any()


def test_labels_by_hand():
    text = 'def f(a, b):  # x("\n    return a.b[(1)] + "é(#" \n'
    byte_text = text.encode().decode("latin-1")
    found = {name: marked(byte_text, flags) for name, flags in labels_of(text).items()}
    assert found["in string"] == '"é(#"'.encode().decode("latin-1")
    assert found["in comment"] == '# x("'
    assert found["in brackets"] == "a, b(1)"
    assert found["in two brackets"] == "1"
    assert found["after dot"] == "b"
    assert found["after def"] == "f"
    assert found["after comma"] == " b"
    assert found["line start"] == "dr"
    assert found["digit"] == "1"
    assert found["open bracket"] == "(([(("
    assert found["newline"] == "\n\n"
    assert found["capital"] == found["keyword"] == found["underscore"] == found["late in line"] == ""
    assert found["deeply indented"] == ""
    assert found["seen before"].startswith("f ")


def test_tokens_of_several_bytes():
    """A tokenizer with words: a token is judged by its first byte that is not white space."""

    class Words:
        all_special_tokens = ("<|endoftext|>",)
        words = (
            "<|endoftext|>",
            "Ġdef",
            "ĠFoo",
            "(",
            "Ġ'",
            "Ã",
            "©'",
            "Ċ",
            "ĊĠĠĠĠĠĠĠĠ",
            "x1",
            ",",
            "_y",
            "▁the",
        )

        def convert_tokens_to_ids(self, token):
            return self.words.index(token)

        def convert_ids_to_tokens(self, ids):
            return [self.words[i] for i in ids]

    #            def  Foo (  '   é  '   ,  x1  \n8  x1 _y  <sep> x1  \n
    blocks = torch.tensor([[1, 2, 3, 4, 5, 6, 10], [9, 8, 9, 11, 0, 9, 7]])
    found = code_concepts(blocks, Words()).flatten(0, 1)
    by_name = {name: found[:, i].nonzero().flatten().tolist() for i, name in enumerate(NAMES)}
    assert by_name["keyword"] == [0]
    assert by_name["capital"] == [1]
    assert by_name["after def"] == [1]
    assert by_name["in string"] == [3, 4, 5]
    # the closing bracket never comes, and a separator ends the document
    assert by_name["in brackets"] == [3, 4, 5, 6, 7, 8, 9, 10]
    assert by_name["digit"] == [7, 9, 12]
    assert by_name["after comma"] == [7]
    assert by_name["newline"] == [8, 13]
    assert by_name["line start"] == [0, 9, 12]
    assert by_name["deeply indented"] == [9, 10]
    assert by_name["underscore"] == [10]
    assert by_name["seen before"] == [9]
    assert by_name["late in block"] == [3, 4, 5, 6, 10, 12, 13]
    assert not found[11].any()
    with pytest.raises(ValueError, match=r"'▁the' is not made of byte-level"):
        code_concepts(torch.tensor([[12]]), Words())


def test_strings_go_on_from_block_to_block():
    text = "x = '''" + "a" * 30 + "''' + b"
    whole, cut = labels_of(text), labels_of(text, length=4)
    for name in NAMES:
        if name != "late in block":
            assert cut[name].tolist() == whole[name][: len(cut[name])].tolist()


def test_seen_before_looks_back_so_far():
    far = "Q" + "ab" * (concepts.SEEN_WITHIN // 2) + "Q"
    near = "Q" + "ab" * (concepts.SEEN_WITHIN // 2 - 1) + "aQ"
    assert not labels_of(far)["seen before"][-1]
    assert labels_of(near)["seen before"][-1]


def test_bad_blocks_are_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        code_concepts(torch.zeros(3, dtype=torch.long), tokenizer())
    with pytest.raises(ValueError, match=r"torch.float32"):
        code_concepts(torch.zeros(1, 3), tokenizer())

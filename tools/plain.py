"""MyST Markdown as plain Markdown, for notebooks that are read outside of the book.

Covers what the chapters use: directives (admonitions, theorems, exercises, math), roles (glue,
citations, references, index and glossary entries), labels, labelled equations. Code keeps every character.
Anything else raises BookError, so that a new piece of MyST in a chapter is noticed.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tools.layout import BookError

FENCE = re.compile(r"^(`{3,}|:{3,})\s*(?:\{([\w:-]+)\}\s*(.*)|(.*))$")
OPTION = re.compile(r"^:([\w-]+):\s*(.*)$")
TARGET = re.compile(r"^\([\w-]+\)=\n", re.MULTILINE)
SECTION = re.compile(r"^\(([\w-]+)\)=\n+#+ (.+)$", re.MULTILINE)
EQUATION = re.compile(r"\$\$(.+?)\$\$(?:\s*\(([\w-]+)\))?", re.DOTALL)
# what running text is cut at, the first that fits: a role, code, a link to a page that is no notebook
INLINE = re.compile(
    r"\{(?P<role>[\w:]+)\}`(?P<content>[^`]+)`"
    r"|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)"
    r"|\[(?P<shown>[^\]]+)\]\(\w+\.md(?:#[\w-]+)?\)",
    re.DOTALL,
)
THEOREMS = ("definition", "theorem", "proposition", "lemma", "algorithm")
BOXES = ("admonition", "tip", "note", "warning")


@dataclass
class Names:
    """What references stand for: citations by key, theorems and equations by label."""

    citations: Mapping[str, str]
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Block:
    """A stretch of Markdown: prose, a piece of code with its fence, or a directive with its body."""

    kind: str
    text: str
    title: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


def blocks(text: str) -> Iterator[Block]:
    """Cut Markdown into prose, code and directives; directives inside a directive stay in its body."""
    lines, prose = iter(text.split("\n")), list[str]()
    for line in lines:
        opened = FENCE.match(line)
        if not opened:
            prose.append(line)
            continue
        if prose:
            yield Block("prose", "\n".join(prose))
            prose = []
        fence, name, title, _ = opened.groups()
        inner: list[str] = []
        for line_inside in lines:
            if line_inside.strip() == fence:
                break
            inner.append(line_inside)
        if name is None:
            yield Block("code", "\n".join([line, *inner, fence]))
            continue
        options = {}
        while inner and (option := OPTION.match(inner[0])):
            options[option[1]] = option[2]
            inner.pop(0)
        yield Block(name, "\n".join(inner).strip("\n"), title.strip(), options)
    if prose:
        yield Block("prose", "\n".join(prose))


def labels(text: str, equations: Iterator[int]) -> dict[str, str]:
    """Return what labelled theorems, exercises and equations of some Markdown are called in a reference."""
    names: dict[str, str] = {}
    for block in blocks(text):
        kind = block.kind.removeprefix("prf:")
        if "label" in block.options and kind in (*THEOREMS, "exercise", "math"):
            named = f"{kind} “{block.title}”" if block.title else kind
            names[block.options["label"]] = f"({next(equations)})" if kind == "math" else named
        if block.kind == "prose":
            names |= {target: f"“{heading}”" for target, heading in SECTION.findall(block.text)}
            for equation in EQUATION.finditer(block.text):
                if equation[2]:
                    names[equation[2]] = f"({next(equations)})"
        elif block.kind != "code":
            names |= labels(block.text, equations)
    return names


def plain(text: str, names: Names, glued: Mapping[str, Any]) -> str:
    """Return Markdown without MyST.

    names: from :func:`labels` and a bibliography. glued: the numbers of the notebook by name.
    """
    parts = []
    for block in blocks(text):
        inside = "" if block.kind in ("prose", "code", "math") else plain(block.text, names, glued)
        title = _inline(block.title, names, glued)
        kind = block.kind.removeprefix("prf:")
        if block.kind == "prose":
            prose = EQUATION.sub(
                lambda e: _equation(e[1], names.labels.get(e[2] or "", "")), TARGET.sub("", block.text)
            )
            parts.append(_inline(prose, names, glued))
        elif block.kind == "code":
            parts.append(block.text)
        elif kind == "math":
            parts.append(_equation(block.text, names.labels.get(block.options.get("label", ""), "")))
        elif kind in BOXES:
            parts.append(_quoted(f"**{title or kind.capitalize()}**\n\n{inside}"))
        elif kind in THEOREMS:
            parts.append(
                _quoted(f"**{kind.capitalize()}**{f' ({title})' if title else ''}. {inside.strip()}")
            )
        elif kind == "proof":
            parts.append(f"*Proof.* {inside.strip()} ∎")
        elif kind == "exercise":
            parts.append(f"### Exercise: {title}\n\n{inside}")
        else:
            raise BookError(f"the directive {{{block.kind}}} {block.title!r} has no plain form")
    return "\n".join(parts)


def _equation(body: str, number: str) -> str:
    tag = f" \\tag{{{number.strip('()')}}}" if number else ""
    return f"$${body.rstrip()}{tag} $$"


def _inline(text: str, names: Names, glued: Mapping[str, Any]) -> str:
    """Roles and links of running text; code keeps every character."""

    def replace(found: re.Match[str]) -> str:
        if found["role"]:
            return _role(found["role"], found["content"], names, glued)
        return found["shown"] or found[0]

    return INLINE.sub(replace, text)


def _role(role: str, content: str, names: Names, glued: Mapping[str, Any]) -> str:
    if role == "glue:text":
        name, _, form = content.partition(":")
        if name not in glued:
            raise BookError(f"no cell has glued {name!r}")
        return format(glued[name], form)
    if role == "cite":
        return f"({'; '.join(names.citations[key.strip()] for key in content.split(','))})"
    if role in ("prf:ref", "eq", "ref"):
        shown, _, label = content.rstrip(">").rpartition("<")
        return shown.strip() or names.labels.get(label, label)
    if role in ("index", "term"):
        return content.partition("<")[0].strip()
    raise BookError(f"the role {{{role}}} `{content}` has no plain form")


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.strip().split("\n"))

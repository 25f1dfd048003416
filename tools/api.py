"""The pages of the API reference, from the sources of library and experiments: signatures, docstrings, links.

Nothing is imported: the pages are the same on every machine. Public is what `sae_lib.__all__` offers: the
modules, and of each what its `__all__` names or, without one, whatever does not begin with an underscore.
Of the experiments the modules named here are public.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

from tools.docstrings import inline, markdown
from tools.layout import Book
from tools.signatures import Definition, Source, docstring, is_class, signature

# the data's way through the library; a public module that is not named here comes last
CONTENTS = {
    "data": ("Data and models", (
        "synthetic", "corpora", "language_models", "activations", "batches", "normalisation",
    )),
    "training": ("Autoencoders and training", (
        "sae", "methods", "training", "distributed", "storage",
    )),
    "measuring": ("Measuring", (
        "metrics", "metrics.cooccurrence", "metrics.faithfulness", "metrics.nulls", "metrics.predictions",
        "metrics.reading", "metrics.spectrum", "metrics.splitting", "identifiability",
        "identifiability.bands", "sweeps", "records",
    )),
    "reading": ("Reading, showing, experiments", (
        "interventions", "dashboards", "plotting", "sae_experiments", "sae_experiments.testbed",
        "sae_experiments.latent_reading", "sae_experiments.token_classes", "sae_experiments.concepts",
        "sae_experiments.probes", "sae_experiments.concept_search", "sae_experiments.null_models",
        "sae_experiments.synthsaebench", "sae_experiments.dictionaries",
    )),
}  # fmt: skip
LAST = list(CONTENTS)[-1]
EXPERIMENTS = "sae_experiments"

INDEX = """\
# API reference

What `sae_lib` offers, in the order in which data flow through it, and what the book's own experiments
(`sae_experiments`, installed with it) add. Written by the build from the docstrings.
Names in `sae_lib` itself load on first use:

{exports}

Shapes stand in brackets: N rows, B rows of a batch, d dimensions, M latents, n features. An error names the
value that was refused and what was expected.

Examples run as they stand after `import torch` and `import sae_lib`; the tests run each of them, in an empty
folder. `model` and `corpus` are a language model and texts, from `sae_lib.language_models.load()` and
`sae_lib.corpora`; in the tests a tiny random model with a token for each byte, and random letters.

{contents}
"""

PART = """\
(api-part-{name})=
# {title}

Part of the [API reference](api.md). {contents}

{modules}
"""


class Library:
    """The public part of `sae_lib` and of the experiments, read from their sources."""

    def __init__(self, book: Book) -> None:
        self.library, *others = book.packages
        self.roots = {folder.name: folder for folder in others}
        self._sources: dict[str, Source] = {}
        self.known: dict[str, str] = {}  # full name → target, of all that has a place on a page
        for part in CONTENTS:
            for module in self.modules(part):
                self.known[module] = f"api-{module.replace('.', '-')}".replace("_", "-")
                for item in self.items(module):
                    self.known[f"{module}.{item.name}"] = item.target

    def source(self, module: str) -> Source:
        """The source of a module by its name without `sae_lib.`; a package is its `__init__.py`."""
        if module not in self._sources:
            top, *inner = module.split(".")
            path = self.roots.get(top, self.library / top).joinpath(*inner)
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            self._sources[module] = Source(path.read_text("utf8"), path.name == "__init__.py")
        return self._sources[module]

    @cached_property
    def exports(self) -> dict[str, str]:
        """What `sae_lib` itself offers beside its modules: name → module."""
        found: dict[str, str] = ast.literal_eval(self.source("").assigned["_EXPORTS"])
        return found

    @cached_property
    def public_modules(self) -> tuple[str, ...]:
        """The modules in `sae_lib.__all__`."""
        found: tuple[str, ...] = ast.literal_eval(self.source("").assigned["_MODULES"])
        return found

    def modules(self, part: str) -> list[str]:
        """The modules of a part, as far as the library has them."""
        public = (*self.public_modules, *self.roots)
        listed = [module for module in CONTENTS[part][1] if module.partition(".")[0] in public]
        if part == LAST:
            named = {module for _, modules in CONTENTS.values() for module in modules}
            listed += [module for module in self.public_modules if module not in named]
        return listed

    def items(self, module: str) -> list["Item"]:
        """The public functions, classes and constants of a module, in its own order."""
        source, found = self.source(module), []
        names = source.public
        for name in names:
            home, where = source, module
            if name not in home.defined and (origin := home.imported.get(name)):
                home, where = self.source(origin), origin
                # a submodule with a section of its own shows it there
                if where in {m for _, modules in CONTENTS.values() for m in modules}:
                    continue
            if name in home.defined:
                found.append(Item(name, module, where, home))
        return found

    def address(self, module: str, role: str) -> str:
        """The target that a role in a docstring of a module means, as an address; "" if there is none."""
        role = role.removeprefix("sae_lib.")
        full = self.exports.get(role)
        package = module.partition(".")[0]
        for name in (f"{full}.{role}", f"{package}.{role}", f"{module}.{role}", role):
            if name in self.known:
                return f"#{self.known[name]}"
        same = [target for name, target in self.known.items() if name.endswith(f".{role}")]
        return f"#{same[0]}" if len(same) == 1 else ""


@dataclass(frozen=True)
class Item:
    """A public name: where it is shown (`module`), and where it is written (`home`)."""

    name: str
    module: str
    where: str
    home: Source

    @property
    def node(self) -> Definition:
        return self.home.defined[self.name]

    @property
    def target(self) -> str:
        if isinstance(self.node, ast.expr):
            return f"api-{self.module}".replace(".", "-").replace("_", "-")
        # names that differ in their case alone are not the same to Sphinx
        kind = "class-" if is_class(self.node) else ""
        return f"api-{self.module}-{kind}{self.name}".replace(".", "-").replace("_", "-").lower()


@dataclass(frozen=True)
class Page:
    """One part of the reference; `name` is "" for its first page."""

    name: str

    @property
    def PAGE(self) -> str:
        """The name of its file."""
        return f"api_{self.name}.md" if self.name else "api.md"

    def text(self, book: Book) -> str:
        """The page as Markdown; empty for a book whose library is not `sae_lib`."""
        if not (book.packages[0] / "training" / "loop.py").is_file():
            return ""
        library = Library(book)
        if not self.name:
            return INDEX.format(exports=_exports(library), contents=_contents(library))
        shown = library.modules(self.name)
        modules = "\n\n".join("\n\n".join(_module(library, module)) for module in shown)
        contents = " · ".join(f"[`{module}`](#{library.known[module]})" for module in shown)
        return PART.format(name=self.name, title=CONTENTS[self.name][0], contents=contents, modules=modules)


PAGES = tuple(Page(name) for name in ("", *CONTENTS))


def _exports(library: Library) -> str:
    lines = ["| `sae_lib.…` | |", "| --- | --- |"]
    for name, module in library.exports.items():
        text = inline(_first_sentence(library.source(module).defined[name]), partial(library.address, module))
        lines.append(f"| [`{name}`]({library.address(module, name)}) | {text} |")
    return "\n".join(lines)


def _contents(library: Library) -> str:
    lines = []
    for part, (title, _) in CONTENTS.items():
        lines.append(f"## [{title}](#api-part-{part})\n")
        for module in library.modules(part):
            names = ", ".join(f"[`{item.name}`](#{item.target})" for item in library.items(module))
            lines.append(f"- [`{full_name(module)}`](#{library.known[module]}){names and ': '}{names}")
        lines.append("")
    return "\n".join(lines).rstrip()


def full_name(module: str) -> str:
    """The name that one imports."""
    return module if module.partition(".")[0] == EXPERIMENTS else f"sae_lib.{module}"


def _first_sentence(node: Definition) -> str:
    first = " ".join(docstring(node).split("\n\n")[0].split())
    return re.split(r"(?<=[^.…])\.\s(?=[A-Z])", first)[0].replace("|", "∣")


def _module(library: Library, module: str) -> Iterator[str]:
    yield f"({library.known[module]})=\n## `{full_name(module)}`"
    yield markdown(docstring(library.source(module).tree), partial(library.address, module))
    items = library.items(module)
    if constants := [item for item in items if isinstance(item.node, ast.expr)]:
        yield "\n".join(f"- `{item.name}`{_value(item)}" for item in constants)
    for item in items:
        if not isinstance(item.node, ast.expr):
            yield from _item(library, item)


def _value(item: Item) -> str:
    """The value of a constant where it is short and plain."""
    try:
        value = repr(ast.literal_eval(item.node))
    except ValueError:
        return ""
    return f" = `{value}`" if len(value) <= 90 else ""


def _item(library: Library, item: Item) -> Iterator[str]:
    node, link = item.node, partial(library.address, item.where)
    yield f"({item.target})=\n### `{item.name}`"
    yield f"```python\n{signature(node, item.home, library.source)}\n```"
    yield markdown(docstring(node), link)
    for method in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
            yield f"#### `{item.name}.{method.name}`"
            yield f"```python\n{signature(method, item.home, library.source)}\n```"
            yield markdown(docstring(method), link)

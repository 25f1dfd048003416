"""What a source file defines, and how its functions and classes are called, in the words of the source."""

import ast
from collections.abc import Callable
from functools import cached_property

# a longer signature has a line for each argument
WIDTH = 88

Definition = ast.FunctionDef | ast.ClassDef | ast.expr
Found = tuple[ast.ClassDef, "Source"]
Find = Callable[[str], Found | None]


class Source:
    """One module of a package: its text and what it defines, assigns and imports at top level."""

    def __init__(self, text: str, is_package: bool) -> None:
        self.text, self.is_package = text, is_package
        self.tree = ast.parse(text)
        self.assigned: dict[str, ast.expr] = {}
        for node in self.tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            value = getattr(node, "value", None)
            if value is not None and isinstance(targets[0], ast.Name):
                self.assigned[targets[0].id] = value

    @cached_property
    def defined(self) -> dict[str, Definition]:
        """Functions, classes and constants in capitals, by name, in their order."""
        found: dict[str, Definition] = {
            node.name: node for node in self.tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        return found | {name: value for name, value in self.assigned.items() if name.isupper()}

    @cached_property
    def imported(self) -> dict[str, str]:
        """Names taken from other modules of the library: name → module, without `sae_lib.`."""
        return {
            alias.asname or alias.name: node.module.removeprefix("sae_lib.")
            for node in self.tree.body
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sae_lib.")
            for alias in node.names
        }

    @cached_property
    def public(self) -> list[str]:
        """What `__all__` names; without one, what is defined here and has no underscore in front."""
        if "__all__" in self.assigned:
            return list(ast.literal_eval(self.assigned["__all__"]))
        return [name for name in self.defined if not name.startswith("_")]

    def words(self, node: ast.AST) -> str:
        """The source of a node on one line."""
        return " ".join((ast.get_source_segment(self.text, node) or "").split())


def is_class(node: ast.AST) -> bool:
    """Whether this is the definition of a class."""
    return isinstance(node, ast.ClassDef)


def classes(base: str, home: Source, source: Callable[[str], Source]) -> Found | None:
    """The definition of a base class and where it stands, if the library has it."""
    name = base.partition("[")[0]
    place = source(home.imported[name]) if name in home.imported else home
    node = place.defined.get(name)
    return (node, place) if isinstance(node, ast.ClassDef) else None


def signature(node: ast.AST, home: Source, find: Find | None = None) -> str:
    """How a function is called, or a class: by its `__init__`, or by the fields of a dataclass.

    find: gives the definition of a base class, whose fields come first.
    """
    if isinstance(node, ast.FunctionDef):
        decorators = [home.words(d) for d in node.decorator_list]
        if any(d in ("property", "cached_property") for d in decorators):
            return f"{node.name}: {home.words(node.returns)}" if node.returns else node.name
        bound = bool(node.args.args and node.args.args[0].arg in ("self", "cls"))
        returns = f" -> {home.words(node.returns)}" if node.returns else ""
        return _call(node.name, _arguments(node.args, home, bound), returns)
    assert isinstance(node, ast.ClassDef)
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            return _call(f"class {node.name}", _arguments(method.args, home, bound=True))
    return _call(f"class {node.name}", _fields(node, home, find))


def _call(name: str, arguments: list[str], after: str = "") -> str:
    line = f"{name}({', '.join(arguments)}){after}"
    if len(line) <= WIDTH or not arguments:
        return line
    return f"{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){after}"


def _arguments(args: ast.arguments, home: Source, bound: bool) -> list[str]:
    def shown(arg: ast.arg, default: ast.expr | None) -> str:
        return _argument(arg.arg, arg.annotation, default, home)

    plain = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [*[None] * (len(plain) - len(args.defaults)), *args.defaults]
    found = [shown(arg, default) for arg, default in zip(plain, defaults, strict=True)][bound:]
    if args.vararg:
        found.append(f"*{shown(args.vararg, None)}")
    elif args.kwonlyargs:
        found.append("*")
    found += [shown(arg, default) for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    return [*found, f"**{shown(args.kwarg, None)}"] if args.kwarg else found


def _argument(name: str, kind: ast.expr | None, default: ast.expr | None, home: Source) -> str:
    annotated = f"{name}: {home.words(kind)}" if kind else name
    if default is None:
        return annotated
    return f"{annotated} = {home.words(default)}" if kind else f"{name}={home.words(default)}"


def _fields(node: ast.ClassDef, home: Source, find: Find | None) -> list[str]:
    """The fields of a dataclass or named tuple, those of its bases first, keywords after a star."""
    plain, keywords = _collected(node, home, find)
    return [*plain.values(), *(["*", *keywords.values()] if keywords else [])]


def _collected(node: ast.ClassDef, home: Source, find: Find | None) -> tuple[dict[str, str], dict[str, str]]:
    plain: dict[str, str] = {}
    keywords: dict[str, str] = {}
    for base in reversed(node.bases):
        if find and (found := find(home.words(base))):
            inherited = _collected(*found, find)
            plain |= inherited[0]
            keywords |= inherited[1]
    made = {home.words(d).partition("(")[0] for d in node.decorator_list} | {
        home.words(b) for b in node.bases
    }
    if not made & {"dataclass", "NamedTuple"}:
        return plain, keywords
    for entry in node.body:
        if not (isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name)):
            continue
        if home.words(entry.annotation).startswith("ClassVar"):
            continue
        default, where = entry.value, plain
        if isinstance(default, ast.Call) and home.words(default.func) == "field":
            options = {keyword.arg: keyword.value for keyword in default.keywords}
            where = keywords if "kw_only" in options else plain
            default = options.get("default") or options.get("default_factory")
        where[entry.target.id] = _argument(entry.target.id, entry.annotation, default, home)
    return plain, keywords

"""Which modules of some packages a piece of code reaches, found without running it.

Names are followed to the module that defines them: through `from package.module import name` lines in
an `__init__.py`, and through a dictionary `_EXPORTS = {name: module}` there (a lazy `__getattr__`).
So `import package` alone reaches nothing, and `package.train` reaches only the module behind `train`.
"""

import ast
import re
from collections.abc import Iterator
from functools import cached_property
from importlib.util import resolve_name
from pathlib import Path


class Packages:
    """The modules of packages that may import from each other, read from their folders."""

    def __init__(self, *folders: Path) -> None:
        self.folders = {folder.name: folder for folder in folders}
        self._exports: dict[str, dict[str, str]] = {}

    @cached_property
    def files(self) -> dict[str, Path]:
        """Dotted module name → file; a package's name stands for its `__init__.py`."""
        files = {}
        for name, folder in self.folders.items():
            if not (folder / "__init__.py").is_file():
                raise ValueError(f"{folder} is not a package: it has no __init__.py")
            for path in sorted(folder.rglob("*.py")):
                parts = [name, *path.relative_to(folder).with_suffix("").parts]
                files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        return files

    def reached_by(self, code: str) -> dict[str, Path]:
        """Return the modules that `code` reaches, directly or through other modules: name → file."""
        waiting = list(self._used_in(ast.parse(code), module=""))
        reached: set[str] = set()
        while waiting:
            module = waiting.pop()
            if module not in reached:
                reached.add(module)
                waiting += self._used_in(ast.parse(self.files[module].read_text("utf8")), module)
        return {module: self.files[module] for module in sorted(reached)}

    def _used_in(self, tree: ast.Module, module: str) -> Iterator[str]:
        """The modules that one file names itself."""
        imported = dict(self._imports(tree, module))
        for path in imported.values():
            # a package that is only bound to a name is judged by what is then taken from it
            if not self._is_package(path):
                yield from self._resolve(path)
        for path in self._uses(tree, imported):
            yield from self._resolve(path)

    def _imports(self, tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
        """(bound name, dotted path) of every import from the packages."""
        for node in _executed(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if self._is_own(alias.name):
                        top = alias.name.partition(".")[0]
                        yield (alias.asname, alias.name) if alias.asname else (top, top)
                        # `import package.module` runs the module even when only `package` is bound
                        if not alias.asname:
                            yield f"import {alias.name}", alias.name
            elif isinstance(node, ast.ImportFrom):
                base = self._base(node, module)
                if self._is_own(base):
                    for alias in node.names:
                        path = f"{base}.{alias.name}"
                        yield alias.asname or alias.name, path

    def _base(self, node: ast.ImportFrom, module: str) -> str:
        """The absolute name behind `from base import …`, relative imports included."""
        if not node.level:
            return str(node.module)
        package = module if self._is_package(module) else module.rpartition(".")[0]
        return resolve_name("." * node.level + (node.module or ""), package)

    def _uses(self, tree: ast.Module, imported: dict[str, str]) -> Iterator[str]:
        """The dotted paths taken from imported packages: `package.a.b` or, unsure, all of it."""
        inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            if id(node) in inner or not isinstance(node, ast.Attribute | ast.Name):
                continue
            root, dot, names = (text := ast.unparse(node)).partition(".")
            if root in imported and re.fullmatch(r"[\w.]+", text):
                path = f"{imported[root]}{dot}{names}"
                yield f"{path}.*" if self._is_package(path) else path

    def _resolve(self, path: str) -> Iterator[str]:
        """The modules behind a dotted path; `package.*` stands for everything in it."""
        parts = path.split(".")
        place = parts[0]
        for depth, part in enumerate(parts[1:], start=1):
            if not self._is_package(place):
                break
            if part == "*":
                yield from (module for module in self.files if f"{module}.".startswith(f"{place}."))
                return
            if f"{place}.{part}" in self.files:
                place = f"{place}.{part}"
            elif part in self._names(place):
                yield from self._resolve(".".join([self._names(place)[part], *parts[depth + 1 :]]))
                return
            else:
                break  # defined in the __init__.py itself
        if not self._is_package(place) or place != path:
            yield place

    def _names(self, package: str) -> dict[str, str]:
        """What a package's `__init__.py` takes from elsewhere: public name → dotted path."""
        if package not in self._exports:
            tree = ast.parse(self.files[package].read_text("utf8"))
            names = {name: path for name, path in self._imports(tree, package) if path != f"{package}.{name}"}
            for node in tree.body:
                target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
                if isinstance(target, ast.Name) and target.id == "_EXPORTS":
                    for name, module in ast.literal_eval(node.value).items():  # type: ignore[attr-defined]
                        base = module if self._is_own(module) else f"{package}.{module.lstrip('.')}"
                        if base in self.files:
                            names[name] = f"{base}.{name}"
            self._exports[package] = names
        return self._exports[package]

    def _is_own(self, path: str) -> bool:
        return path.partition(".")[0] in self.folders

    def _is_package(self, path: str) -> bool:
        return path in self.files and self.files[path].name == "__init__.py"


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a file without what stands under `if TYPE_CHECKING:`, which no run comes to."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")):
            yield child
            yield from _executed(child)

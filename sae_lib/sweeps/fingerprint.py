"""What a function's result depends on, as JSON values: its source, what that uses, its arguments."""

import dis
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

from sae_lib.methods.base import Method

# changes from chapter to chapter, so only the modules that a function uses count; of the library all do
FOLLOWED = "sae_experiments"


def plain_cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cell as JSON values, methods as their descriptions; ValueError for anything else."""
    values = {k: v.describe() if isinstance(v, Method) else v for k, v in cell.items()}
    for name, value in values.items():
        try:
            values[name] = json.loads(json.dumps(value))
        except TypeError as error:
            raise ValueError(
                f"cell argument {name} is a {type(value).__name__}; expected a plain JSON value or a method"
            ) from error
    return values


def fingerprint(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the source of a function and of what it uses from its own module, as JSON values.

    Modules of the book's experiments that it uses count by their source; other modules, their functions and
    classes by name.

    Raises:
        ValueError: A variable that it uses is neither code nor a plain value; pass it as an argument.
    """
    parts: dict[str, Any] = {}
    _trace(function, parts)
    return parts


def _trace(function: Callable[..., Any], parts: dict[str, Any]) -> None:
    if not isinstance(function, FunctionType):
        raise ValueError(f"{function!r} is not a plain function; define it with def")
    parts[function.__qualname__] = inspect.getsource(function)
    for name, value in _variables(function).items():
        module = getattr(value, "__module__", None)
        if isinstance(value, ModuleType):
            parts[name] = value.__name__
            _follow(value.__name__, parts)
        elif isinstance(value, FunctionType) and module == function.__module__:
            if value.__qualname__ not in parts:
                _trace(value, parts)
        elif isinstance(value, type | FunctionType) or callable(value):
            parts[name] = f"{module}.{getattr(value, '__qualname__', name)}"
            _follow(module, parts)
        else:
            try:
                parts[name] = json.loads(json.dumps(plain_cell({name: value})[name]))
            except ValueError as error:
                raise ValueError(
                    f"{function.__qualname__} uses the variable {name}, a {type(value).__name__}; "
                    "pass what it holds through the cells, or make it inside the function"
                ) from error


def _follow(module: Any, parts: dict[str, Any]) -> None:
    """Add the source of a module of the experiments and of those it imports from."""
    key = f"source of {module}"
    if key in parts or str(module).partition(".")[0] != FOLLOWED:
        return
    parts[key] = inspect.getsource(sys.modules[module])
    for value in vars(sys.modules[module]).values():
        is_module = isinstance(value, ModuleType)
        _follow(value.__name__ if is_module else getattr(value, "__module__", None), parts)


def _variables(function: FunctionType) -> dict[str, Any]:
    """Return what a function uses from around it, by name, also in its comprehensions and inner functions."""
    codes = [function.__code__]
    for code in codes:
        codes.extend(constant for constant in code.co_consts if isinstance(constant, CodeType))
    # inspect.getclosurevars would take an attribute for a variable of the same name
    names = [i.argval for code in codes for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"]
    module = function.__globals__
    around = inspect.getclosurevars(function).nonlocals
    return {**around, **{name: module[name] for name in names if name in module}}

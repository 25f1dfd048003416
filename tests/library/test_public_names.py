"""What `sae_lib` offers is the same for Python, which loads it late, and for type checkers."""

import ast
import importlib
import subprocess
import sys

import sae_lib
from tools.layout import REPOSITORY


def test_type_checkers_see_the_names_that_load_on_first_use():
    tree = ast.parse((REPOSITORY / "sae_lib" / "__init__.py").read_text("utf8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {(node.module, alias.name, alias.asname) for node in block.body for alias in node.names}
    modules = {("sae_lib", name, name) for name in sae_lib._MODULES}
    assert seen == modules | {(f"sae_lib.{module}", n, n) for n, module in sae_lib._EXPORTS.items()}


def test_every_public_name_loads():
    for name in sae_lib.__all__:
        assert getattr(sae_lib, name) is not None
    for name, module in sae_lib._EXPORTS.items():
        assert getattr(sae_lib, name) is getattr(importlib.import_module(f"sae_lib.{module}"), name)


def test_importing_the_library_loads_nothing_heavy():
    code = "import sys, sae_lib; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0

"""Static analysis of what a chapter reaches: just the modules behind the names it uses."""

from pathlib import Path

import pytest

from tools.reach import Packages

LAZY_INIT = """
__version__ = "1"
if TYPE_CHECKING:
    from lib import lazy
_EXPORTS: dict[str, str] = {"train": "training", "Gba": "methods.gba", "Top": ".methods.top"}
def __getattr__(name): ...
"""
FILES = {
    "__init__.py": LAZY_INIT,
    "training.py": "from lib.sae import Sae\nimport torch\n",
    "sae.py": "",
    "plotting.py": "import lib.style as style\n",
    "style.py": "",
    "lazy.py": "def f():\n    from . import plotting\n",
    "methods/__init__.py": "from lib.methods.gba import Gba as Gba\nfrom .top import Top\ndef make(): ...\n",
    "methods/gba.py": "from ..sae import Sae\n",
    "methods/top.py": "from . import gba\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Packages:
    for name, text in FILES.items():
        path = tmp_path / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Packages(tmp_path / "lib")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import lib", ""),
        ("import numpy as np\nnp.lib.x", ""),
        ("import lib\nlib.train(1).save()", "sae training"),
        ("import lib as l\nl.plotting.line", "plotting style"),
        ("from lib import plotting", "plotting style"),
        ("from lib import train", "sae training"),
        ("from lib import lazy", "lazy plotting style"),
        ("import lib.sae", "sae"),
        ("import lib\nlib.Gba(3)", "methods.gba sae"),
        ("import lib\nlib.Top()", "methods.gba methods.top sae"),
        ("from lib import methods", ""),
        ("from lib import methods\nmethods.Gba", "methods.gba sae"),
        ("import lib.methods as m\nm.top.Top", "methods.gba methods.top sae"),
        ("from lib.methods import Top", "methods.gba methods.top sae"),
        # defined in the __init__.py itself: that file and all it imports
        ("import lib\nlib.methods.make()", "methods methods.gba methods.top sae"),
    ],
)
def test_reaches_only_the_modules_behind_the_names(package: Packages, code: str, expected: str) -> None:
    assert set(package.reached_by(code)) == {f"lib.{name}" for name in expected.split()}


def test_what_only_type_checkers_see_is_not_followed(package: Packages) -> None:
    assert set(package.reached_by("import lib\nlib.__version__")) == {"lib"}


@pytest.mark.parametrize("code", ["import lib\nhelp(lib)", "from lib import *"])
def test_unclear_use_reaches_everything(package: Packages, code: str) -> None:
    assert set(package.reached_by(code)) == set(package.files)


def test_imports_are_followed_from_one_package_to_the_other(tmp_path: Path) -> None:
    for name, text in {
        "lib/__init__.py": LAZY_INIT,
        "lib/training.py": "",
        "beside/__init__.py": "",
        "beside/testbed.py": "import lib\nlib.train\n",
        "beside/other.py": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    both = Packages(tmp_path / "lib", tmp_path / "beside")
    for code in ("from beside import testbed", "import beside.testbed as t\nimport lib"):
        assert set(both.reached_by(code)) == {"beside.testbed", "lib.training"}


def test_folder_without_init_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no __init__\.py"):
        Packages(tmp_path / "lib").reached_by("import lib")

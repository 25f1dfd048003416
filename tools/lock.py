"""Writes `requirements.lock`: `python -m tools.lock`, run in the environment to be locked.

The lock holds what the package and its extras need, directly or through others, at the versions
installed now. Packages that merely happen to be installed stay out.
"""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement

from sae_lib.files.atomic import replacing
from tools.layout import REPOSITORY

EXTRAS = ("gguf", "bench", "book", "dev")
LOCK = REPOSITORY / "requirements.lock"
# a model and a text corpus; what they declare as dependencies (a compiler run, a voice assistant) is not used
DATA_LOCK = REPOSITORY / "requirements-data.lock"

HEADER = """\
# Exact versions of the environment in which the book's numbers were made.
# Written by `make lock`; install with `make env`.
"""


def canonical(name: str) -> str:
    """The one spelling of a package's name: lower case, words joined by "-"."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> list[Requirement]:
    """The requirements in pyproject.toml: dependencies and the extras that `make env` installs."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf8"))["project"]
    lines = [*project["dependencies"]]
    for extra in EXTRAS:
        lines += project["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def closure(wanted: list[Requirement]) -> dict[str, str]:
    """Everything that the requirements need on this machine: name → installed version."""
    versions: dict[str, str] = {}
    waiting = [(requirement, "") for requirement in wanted]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonical(requirement.name)
        try:
            installed = distribution(requirement.name)
        except PackageNotFoundError as error:
            raise SystemExit(
                f"{requirement} is needed but not installed: install it, then lock again"
            ) from error
        # a local part such as +cpu names a build, which the machine that installs chooses
        versions[name] = installed.version.partition("+")[0]
        for inner in {"", *requirement.extras}:
            if (name, inner) not in seen:
                seen.add((name, inner))
                waiting += [(Requirement(line), inner) for line in installed.requires or ()]
    return versions


def main() -> None:
    """Write the lock."""
    wanted = declared()
    # a package that exists on one platform only keeps its condition
    where = {canonical(r.name): f" ; {r.marker}" for r in wanted if r.marker}
    versions = sorted(closure(wanted).items())
    pins = [f"{name}=={version}{where.get(name, '')}" for name, version in versions if name != "pip"]
    with replacing(LOCK) as temporary:
        temporary.write_text(HEADER + "\n".join(pins) + "\n", "utf8")
    print(f"{LOCK.name}: {len(pins)} packages")


if __name__ == "__main__":
    main()

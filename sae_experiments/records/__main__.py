"""Make a record of the book again, by the command that the record states.

    python -m sae_experiments.records                # the records, each with its command
    python -m sae_experiments.records 10_search

The record is set aside first, in runs/records, so that nothing of it is kept; it comes back if the command
fails or is stopped. Where the command resumes, the same call resumes.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from sae_lib import records

ROOT = Path(__file__).resolve().parents[2]
RECORDS, ASIDE = ROOT / "book" / "records", ROOT / "runs" / "records"


def commands() -> dict[str, str]:
    """Return the command of every record by name; empty where a record states none.

    A record that is still set aside, because its command was killed, counts too.
    """
    paths = sorted({path.name: path for folder in (ASIDE, RECORDS) for path in folder.glob("*.json")}.items())
    return {Path(name).stem: records.read(path).made.get("command", "") for name, path in paths}


def remake(name: str, command: str) -> int:
    """Run a record's command from the repository's root and return its exit status."""
    path, aside = RECORDS / f"{name}.json", ASIDE / f"{name}.json"
    python, *arguments = shlex.split(command)
    if python != "python":
        raise SystemExit(f"{name} was made by {command!r}, which is no Python module to run again")
    ASIDE.mkdir(parents=True, exist_ok=True)
    if path.exists():
        shutil.move(path, aside)
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT)
    # Ctrl-C reaches the command too; wait for its own ending
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        status = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
        if path.exists():
            aside.unlink(missing_ok=True)
        else:
            shutil.move(aside, path)
            print(f"{name} was not written; the record is the one from before", file=sys.stderr)
    return status


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sae_experiments.records",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help="such as 10_search")
    parser.add_argument("--list", action="store_true", help="list the records; the default without a name")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """List the records, or make one again."""
    options = parser().parse_args(arguments)
    stated = commands()
    if options.list or options.name is None:
        for name, command in stated.items():
            print(f"{name:24}{command or '(states no command)'}")
        return
    name = options.name.removesuffix(".json")
    if name not in stated:
        raise SystemExit(f"no record {name!r}; the records are: {', '.join(stated) or 'none'}")
    command = stated[name]
    if not command:
        raise SystemExit(f"{name} states no command")
    also = [other for other in stated if other != name and stated[other] == command]
    print(command, *([f"writes also {', '.join(also)}"] if also else []), sep="\n", flush=True)
    raise SystemExit(remake(name, command))


if __name__ == "__main__":
    main()

"""A record is made again by the command that it states."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sae_experiments.records import __main__ as command
from sae_lib import records

REPOSITORY = Path(__file__).resolve().parents[2]
WRITE = "from sae_lib import records; records.write('book/records/{}.json', [{{'x': 2}}], seconds=1)"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with one record that can be made again, one that fails and one without a command."""
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "RECORDS", tmp_path / "book" / "records")
    monkeypatch.setattr(command, "ASIDE", tmp_path / "runs" / "records")
    fails = f"assert not open('book/records/03_fails.json'); {WRITE.format('03_fails')}"
    for name, code in {"01_good": WRITE.format("01_good"), "02_none": "", "03_fails": fails}.items():
        stated = shlex.join(["python", "-c", code]) if code else ""
        records.write(tmp_path / f"book/records/{name}.json", [{"x": 1}], seconds=1, command=stated)
    return tmp_path


def rows(root, name):
    return records.read(root / f"book/records/{name}.json").rows


def test_a_record_is_made_again_from_nothing(root):
    with pytest.raises(SystemExit) as ending:
        command.main(["01_good"])
    assert ending.value.code == 0
    assert rows(root, "01_good") == [{"x": 2}]
    assert not list((root / "runs/records").iterdir())


def test_a_record_whose_command_fails_stays(root, capfd):
    with pytest.raises(SystemExit) as ending:
        command.main(["03_fails.json"])
    assert ending.value.code == 1
    assert rows(root, "03_fails") == [{"x": 1}]
    assert "was not written" in capfd.readouterr().err


def test_a_record_that_a_killed_command_left_aside_can_be_made(root):
    (root / "runs/records").mkdir(parents=True)
    (root / "book/records/01_good.json").rename(root / "runs/records/01_good.json")
    with pytest.raises(SystemExit) as ending:
        command.main(["01_good"])
    assert ending.value.code == 0
    assert rows(root, "01_good") == [{"x": 2}]


def test_unknown_names_and_records_without_a_command_are_told(root, capsys):
    with pytest.raises(SystemExit, match="no record '99_x'; the records are: 01_good, 02_none, 03_fails"):
        command.main(["99_x"])
    with pytest.raises(SystemExit, match="02_none states no command"):
        command.main(["02_none"])
    for arguments in ([], ["--list"]):
        command.main(arguments)
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
            "01_good", "02_none", "03_fails"
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "arguments", "stated"),
    [
        ("writer", ["a b", "--x=1"], "python -m writer 'a b' --x=1"),
        ("package", ["{here}/c.json", "--to={here}/d.json"], "python -m package c.json --to=d.json"),
        ("writer", ["/elsewhere/e.json"], "python -m writer e.json"),
    ],
)
def test_a_record_states_the_command_line_without_absolute_paths(tmp_path, module, arguments, stated):
    code = "from sae_lib import records; records.write('out.json', [{'x': 1}], seconds=1)"
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text(code)
    (tmp_path / "writer.py").write_text(code)
    line = [sys.executable, "-m", module, *(a.replace("{here}", str(tmp_path)) for a in arguments)]
    subprocess.run(line, cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    assert records.read(tmp_path / "out.json").made["command"] == stated


def test_a_chapter_s_kernel_states_chapter_and_profile(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_LIB_COMMAND", "python -m tools.book run --profile full 04")
    records.write(tmp_path / "x.json", [{"x": 1}], seconds=1)
    assert records.read(tmp_path / "x.json").made["command"].endswith("--profile full 04")

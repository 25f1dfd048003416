"""Every committed record states a command that exists."""

import importlib
import shlex

import pytest
import typer

from sae_experiments.records.__main__ import commands
from tools.layout import Book

COMMANDS = commands()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_record_states_a_command_that_its_module_accepts(name: str) -> None:
    python, option, module_name, *arguments = shlex.split(COMMANDS[name])
    assert (python, option) == ("python", "-m")
    module = importlib.import_module(module_name)
    if module_name != "tools.book":
        options = module.parser().parse_args(arguments)
        # a benchmark says where the record goes
        if "record" in options:
            assert options.record == Book().pages.relative_to(Book().root) / "records" / f"{name}.json"
        return
    group = typer.main.get_command(module.app)
    assert isinstance(group, typer.core.TyperGroup)
    _, command, rest = group.resolve_command(group.make_context("tools.book", [*arguments]), arguments)
    assert command is not None
    chosen = command.make_context("tools.book", rest).params
    if "profile" in chosen:
        assert chosen["profile"] == "full"
        (chapter,) = Book().sources(chosen["chapters"])
        assert chapter.name[:2] == name[:2]
        assert f"records/{name[:2]}_" in chapter.read_text("utf8")


def test_there_are_records() -> None:
    assert len(COMMANDS) > 40

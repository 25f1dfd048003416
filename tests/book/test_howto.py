"""The pages for users hold: their Python runs, their commands parse, the messages they quote exist."""

import ast
import os
import re
import shlex
import subprocess
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_fixtures import language_model, text_corpus
from typer.testing import CliRunner

from sae_lib import cli
from tools.layout import REPOSITORY

torch.set_num_threads(1)
PAGES = sorted((REPOSITORY / "book").glob("howto_*.md"))
# what the pages say, as small as the tiny model and a second allow; nothing else differs
SMALLER = {
    r"resid_post\.\d+": "resid_post.1",
    r"n_tokens=[\d_]+": "n_tokens=900, block_size=32",
    r"sample\([\d_]+\)": "sample(200)",
    r"width=\d+": "width=48",
    r"steps=\d+": "steps=20, batch_size=64",
    r"latents=\d+": "latents=5",
    r" --tokens \d+": " --tokens 900 --block-size 32",
    r"--faithfulness-tokens \d+": "--faithfulness-tokens 64 --block-size 32",
    r"--width \d+": "--width 48",
    r"--steps \d+": "--steps 20 --batch-size 64",
}


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language, also those indented in a list."""
    fenced = re.findall(
        rf"^( *)```{language}\n(.*?)^ *```$", page.read_text("utf8"), re.MULTILINE | re.DOTALL
    )
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in fenced]


def small(text: str) -> str:
    for large, little in SMALLER.items():
        text = re.sub(large, little, text)
    return text


def commands(page: Path) -> list[list[str]]:
    """The arguments of every call of `sae`, also under torchrun."""
    lines = [small(line) for text in blocks(page, "console") for line in text.splitlines()]
    calls = [re.sub(r"^torchrun .*-m sae_lib |^sae ", "", line) for line in lines if "sae" in line]
    return [shlex.split(call) for call in calls]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the model, the texts and the foreign autoencoder that the pages speak of."""
    tiny = language_model()
    tiny.model.save_pretrained(tmp_path / "my-model")
    tiny.tokenizer.save_pretrained(tmp_path / "my-model")
    (tmp_path / "my-texts").mkdir()
    for document in text_corpus(40).documents:
        (tmp_path / "my-texts" / f"{document.id}.txt").write_text(document.text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_python(page: Path) -> dict[str, Any]:
    """Execute the blocks of a page one after the other; gives what they have defined."""
    names: dict[str, Any] = {"__name__": "howto"}
    for number, text in enumerate(blocks(page, "python")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the little corpus has fewer rows than asked for
            exec(compile(small(text), f"{page.name}, block {number}", "exec"), names)
    return names


def test_pages_are_short_and_have_something_to_run() -> None:
    listed = re.findall(r"file: book/(howto_\w+)", (REPOSITORY / "_toc.yml").read_text("utf8"))
    assert [page.stem for page in PAGES] == sorted(listed)
    for page in PAGES:
        assert len(page.read_text("utf8").splitlines()) <= 60, page.name
        assert blocks(page, "python") or blocks(page, "console"), page.name
    # what `commands` is there to find
    named = {page.stem for page in PAGES if commands(page)}
    assert named >= {"howto_train", "howto_saelens", "howto_cluster"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_parses(page: Path) -> None:
    for arguments in commands(page):
        done = CliRunner().invoke(cli.app, [*arguments, "--show-config"])
        assert done.exit_code == 0, f"{page.name}: sae {' '.join(arguments)}\n{done.output}{done.exception}"


def test_a_command_that_the_library_does_not_know_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\nsae train runs/x --data uniform --htff 0.1\n```\n")
    (arguments,) = commands(page)
    assert CliRunner().invoke(cli.app, [*arguments, "--show-config"]).exit_code != 0


def test_train_page_runs_as_written(workplace: Path) -> None:
    """Python and commands, to two dashboards of the same folder names."""
    page = REPOSITORY / "book" / "howto_train.md"
    names = run_python(page)
    assert (workplace / "runs/mine-gba.html").is_file()
    assert names["sae"].width == 48
    for name in ("mine-gba.html", "mine-gba", "mine"):
        (workplace / "runs" / name).rename(workplace / "runs" / f"python-{name}")
    for arguments in commands(page):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == 0, f"sae {' '.join(arguments)}\n{done.output}{done.exception}"
        if arguments[0] == "evaluate":
            assert "ce_recovered" in done.output
    assert (workplace / "runs/mine-gba.html").stat().st_size > 10_000


def test_saelens_page_runs_as_written(workplace: Path) -> None:
    """Both ways, with an autoencoder that SAELens itself has saved."""
    sae_lens = pytest.importorskip("sae_lens", reason="optional extra: pip install sae_lib[bench]")
    page = REPOSITORY / "book" / "howto_saelens.md"
    sae_class, config = sae_lens.registry.get_sae_class("jumprelu")
    sae_class(config(d_in=32, d_sae=40)).save_model(workplace / "downloads" / "other")
    names = run_python(page)
    assert names["theirs"].cfg.d_sae == 48
    done = CliRunner().invoke(cli.app, commands(page)[0])
    assert done.exit_code == 0, f"{done.output}{done.exception}"


def test_method_page_runs_as_written(workplace: Path) -> None:
    names = run_python(REPOSITORY / "book" / "howto_method.md")
    assert names["log"][-1]["nmse"] < 1
    assert 2 <= len(names["tuned"].trials) <= 6


@cache
def texts() -> list[str]:
    """Every string of the library and the tools, with … for what is filled in."""
    strings = []
    for path in [*(REPOSITORY / "sae_lib").rglob("*.py"), *(REPOSITORY / "tools").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                strings.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append(node.value)
    return strings


def said(message: str) -> bool:
    """Whether the library has a text with the parts of a message in their order."""
    pattern = re.compile(".*".join(map(re.escape, message.strip().split("…"))), re.DOTALL)
    return any(pattern.search(text) for text in texts())


def test_troubleshooting_quotes_messages_that_exist() -> None:
    page = REPOSITORY / "book" / "troubleshooting.md"
    quoted = [line for text in blocks(page, "text") for line in text.splitlines()]
    assert len(blocks(page, "text")) == page.read_text("utf8").count("```text") > 0
    for message in quoted:
        assert said(message), f"no such message in sae_lib: {message}"
    assert not said("the loss is … at midnight")


@pytest.mark.parametrize("name", ["run", "full", "newest"])
def test_scripts_of_continuous_integration_are_sound(name: str) -> None:
    """Executable, valid for bash, stopping at the first failure, and naming no host to fetch from."""
    script = REPOSITORY / ".ci" / name
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = script.read_text("utf8")
    assert "set -euo pipefail" in text
    assert "://" not in text

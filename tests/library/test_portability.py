"""Nothing needs what only some systems have: the library imports, trains and resumes without it."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sae_lib
from sae_lib.files import atomic
from sae_lib.files.atomic import replacing
from sae_lib.records.machine import memory_bytes, peak_bytes
from sae_lib.training import checkpoint

ROOT = Path(sae_lib.__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
PACKAGES = ("sae_lib", "sae_experiments", "tools")
SOURCES = sorted(path for part in PACKAGES for path in (ROOT / part).rglob("*.py"))
POSIX_ONLY = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "posix"}

WITHOUT = f"""
# these have other ways on other systems
import asyncio, contextlib, multiprocessing.util, subprocess, sys
with contextlib.suppress(ImportError):
    import psutil

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {POSIX_ONLY - {"posix"} | {"triton"}}:
            raise ModuleNotFoundError(f"no {{name}} here", name=name)

for name in {POSIX_ONLY - {"posix"}}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
"""
IMPORT_ALL = """
import importlib, pkgutil
import sae_experiments, sae_lib
for package in (sae_lib, sae_experiments):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        # GPU kernels exist on Linux alone, and the library does without them
        if "triton" not in module.name and not module.name.endswith((".gpu", ".__main__")):
            importlib.import_module(module.name)
"""
TRAIN = """
import signal, torch
import sae_lib

folder = sys.argv[1]
data = sae_lib.synthetic.preset("uniform", n_features=24, d_in=12, n_rows=500)
method = sae_lib.GroupBiasAdaptation(groups=2)

def train(folder=None, **options):
    settings = {"width": 16, "steps": 30, "batch_size": 32, "checkpoint_every": 10, "log_every": 5}
    return sae_lib.train(data, method, folder=folder, **settings, **options)[0]
"""
RESUME = """
def stop(step, sae):
    if step == 15:
        second = subprocess.run(command, capture_output=True, text=True)
        print(second.stderr)
        signal.raise_signal(signal.SIGINT)

try:
    train(folder, callback=stop)
except KeyboardInterrupt as error:
    print(error)
resumed, whole = train(folder, resume=True), train()
print("same bits" if torch.equal(resumed.weight, whole.weight) else "other bits")
"""


@pytest.mark.slow
def test_all_modules_import_and_training_resumes_without_posix(tmp_path):
    again = f"{WITHOUT}{TRAIN}\ntrain(folder, resume=True)"
    second = [sys.executable, "-W", "ignore", "-c", again, str(tmp_path)]
    first = f"{WITHOUT}{IMPORT_ALL}{TRAIN}\ncommand = {second!r}\n{RESUME}"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", first, str(tmp_path)], env=ENVIRONMENT, capture_output=True,
        text=True, check=False, timeout=400, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert f"another process is training in {tmp_path}" in result.stdout
    assert "training stopped after step 15 of 30" in result.stdout
    assert "same bits" in result.stdout


def module_imports(tree):
    """Names of the modules that are imported when this one is."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def unnamed_encodings(tree):
    """Lines that read or write text in the encoding of the machine."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        named = any(keyword.arg == "encoding" for keyword in call.keywords)
        positional = {"read_text": 1, "write_text": 2}.get(name)
        if positional is not None and not named and len(call.args) < positional:
            yield call.lineno


def test_no_module_imports_what_other_systems_lack():
    assert set(module_imports(ast.parse("import os, fcntl\nfrom resource import getrusage"))) & POSIX_ONLY
    for path in SOURCES:
        found = set(module_imports(ast.parse(path.read_text("utf8")))) & POSIX_ONLY
        assert not found, f"{path} imports {found}"


def test_text_is_read_and_written_in_a_named_encoding():
    assert list(unnamed_encodings(ast.parse("path.read_text()\npath.write_text('x')"))) == [1, 2]
    for path in SOURCES:
        lines = list(unnamed_encodings(ast.parse(path.read_text("utf8"))))
        assert not lines, f"{path}, lines {lines}: name the encoding"


# ---- files


WRITER = """
import sys
from pathlib import Path
from sae_lib.files.atomic import replacing
with replacing(Path(sys.argv[1])) as path:
    path.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_goes_but_not_what_a_live_one_writes(tmp_path):
    path = tmp_path / "a.json"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout.readline() == "writing\n"
        with replacing(path) as temporary:
            temporary.write_text("ours")
        assert [p.read_text() for p in tmp_path.glob(".*.tmp")] == ["half"]
        writer.kill()
    assert list(tmp_path.glob(".*.tmp"))
    with replacing(path) as temporary:
        temporary.write_text("ours again")
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_left_without_its_file_goes_too(tmp_path):
    (tmp_path / ".a.json.12ab.tmp.lock").touch()
    with replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("ours")
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


@pytest.mark.parametrize("number", sorted(atomic._NO_LOCKS))
def test_files_are_written_where_there_are_no_locks(tmp_path, monkeypatch, number):
    def refused(self, *_, **__):
        Path(self.lock_file).touch()
        raise OSError(number, "no locks here")

    monkeypatch.setattr(atomic.FileLock, "acquire", refused)
    with replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("ours")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.warns(UserWarning, match="file system without locks"), atomic.only_writer(tmp_path, "in"):
        pass


def test_a_file_that_somebody_has_open_is_waited_for(tmp_path, monkeypatch):
    """Windows refuses to replace it as long as that lasts."""
    replace, naps, refusals = os.replace, [], iter([32, 5])

    def busy(source, target):
        if (number := next(refusals, None)) is not None:
            error = PermissionError(13, "in use")
            error.winerror = number
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr(atomic.time, "sleep", naps.append)
    with replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("ours")
    assert (tmp_path / "a.json").read_text() == "ours"
    assert len(naps) == 2

    def refused(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(PermissionError, match=r"cannot write .*a\.json"), replacing(tmp_path / "a.json") as t:
        t.write_text("theirs")
    assert (tmp_path / "a.json").read_text() == "ours"
    assert len(naps) == 2


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux which files are mapped")
def test_a_resumed_run_holds_no_file_that_it_will_replace(tmp_path):
    """Windows cannot replace a file that is mapped into memory."""
    data = sae_lib.synthetic.preset("uniform", n_features=24, d_in=12, n_rows=500)
    settings = {"width": 16, "steps": 20, "batch_size": 32, "checkpoint_every": 10, "log_every": 5}
    method = sae_lib.GroupBiasAdaptation(groups=2)

    def stop(step, sae):
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        sae_lib.train(data, method, folder=tmp_path, callback=lambda n, s: n == 15 and stop(n, s), **settings)
    mapped = []
    sae_lib.train(
        data, method, folder=tmp_path, resume=True,
        callback=lambda *_: mapped.append(checkpoint.NAME in Path("/proc/self/maps").read_text()), **settings,
    )  # fmt: skip
    assert mapped == [False, False]
    sae = sae_lib.load(tmp_path)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    sae.save(tmp_path)


def test_memory_is_known():
    assert 2**20 < peak_bytes() < memory_bytes() < 2**50

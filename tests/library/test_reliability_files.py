"""Full disks, read-only folders, damaged files, two writers: a clear error, and nothing lost."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_fixtures import language_model, text_corpus
from safetensors.torch import load_file

import sae_lib
from sae_lib import (
    GroupBiasAdaptation,
    SparseAutoencoder,
    records,
    storage,
    sweeps,
)
from sae_lib.activations import ActivationStore, harvest
from sae_lib.activations.manifest import Manifest
from sae_lib.files import tensors as tensor_files
from sae_lib.files.atomic import only_writer, replacing
from sae_lib.storage import StorageError
from sae_lib.training import checkpoint
from sae_lib.training.checkpoint import CheckpointError

METHOD = GroupBiasAdaptation(groups=2)
RUN = {"width": 16, "steps": 30, "batch_size": 32, "checkpoint_every": 10, "log_every": 5}
STORE = {"n_tokens": 500, "block_size": 16, "batch_blocks": 3, "shard_rows": 200, "skip_first": 1}
STORE |= {"spread": False, "max_norm": None}


@pytest.fixture(scope="module")
def data():
    return sae_lib.synthetic.preset("uniform", n_features=24, d_in=12, n_rows=500)


@pytest.fixture(scope="module")
def lm():
    return language_model()


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def flip(path, position, bit=1):
    raw = bytearray(path.read_bytes())
    raw[position] ^= bit
    path.write_bytes(raw)


# ---- writing


def test_a_file_of_ours_is_what_safetensors_reads_and_anybody_may_read(tmp_path, dice):
    def draw(*shape):
        return torch.randn(shape, generator=dice)

    tensors = {
        "half": draw(3, 5).half(), "brain": draw(7).bfloat16(), "count": torch.tensor(3),
        "flag": torch.tensor([True, False, True]), "none": torch.empty(0, 4), "wide": draw(2).double(),
        "turned": draw(4, 3).T,
    }  # fmt: skip
    path = tmp_path / "a.safetensors"
    previous = os.umask(0o022)
    try:
        with replacing(path) as temporary:
            tensor_files.write_tensors(temporary, tensors, {"key": "välue", "another": "1"})
    finally:
        os.umask(previous)
    for found in (load_file(path), tensor_files.read_tensors(path)):
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in tensors.items())
    assert tensor_files.read_metadata(path) == {"key": "välue", "another": "1"}
    assert os.name == "nt" or path.stat().st_mode & 0o777 == 0o644


def test_leftovers_go_when_the_file_is_next_written_but_not_a_live_writers(tmp_path):
    dead = [tmp_path / name for name in (".a.json.1234.tmp", ".a.json.ab12.tmp")]
    other = tmp_path / ".b.json.1234.tmp"
    for path in (*dead, other):
        path.write_text("half")
    with replacing(tmp_path / "a.json") as first:
        first.write_text("first")
        with replacing(tmp_path / "a.json") as second:
            assert first.exists()
            second.write_text("second")
        assert (tmp_path / "a.json").read_text() == "second"
    assert (tmp_path / "a.json").read_text() == "first"
    assert sorted(tmp_path.iterdir()) == [other, tmp_path / "a.json"]


def writers(folder, data, lm, resume=False):
    """Everything that writes, as calls."""
    return {
        "autoencoder": lambda: SparseAutoencoder(12, 16).save(folder / "sae"),
        "training": lambda: sae_lib.train(data, METHOD, folder=folder / "run", resume=resume, **RUN),
        "harvest": lambda: harvest(lm, text_corpus(), "resid_post.1", folder / "store", **STORE),
        "record": lambda: records.write(folder / "record.json", [{"a": 1}], seconds=1),
        "sweep": lambda: sweeps.sweep(dict, [{"a": 1}], folder=folder / "sweep", workers=1),
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="folders of Linux")
@pytest.mark.parametrize("what", ["autoencoder", "training", "harvest", "record"])
@pytest.mark.parametrize("folder", ["/proc", "/sys/kernel"])
def test_a_folder_that_cannot_be_written_is_named_at_once(what, folder, data, lm):
    with pytest.raises(OSError, match=rf"cannot write {folder}.*untouched; .*, then run again") as caught:
        writers(Path(folder), data, lm)[what]()
    assert not isinstance(caught.value, UnicodeError)
    if folder == "/sys/kernel":
        assert "choose a folder that you may write to" in str(caught.value)


@pytest.mark.filterwarnings("ignore:harvesting again from shard 1")
@pytest.mark.parametrize("what", ["autoencoder", "training", "harvest"])
def test_a_limit_on_file_sizes_leaves_the_old_files(what, data, lm, tmp_path):
    """The system itself refuses the write half way, as on a full disk."""
    writers(tmp_path, data, lm)[what]()
    (folder,) = tmp_path.iterdir()
    for lost in folder.glob("shard-00001*"):
        lost.unlink()
    before = contents(folder)
    again = writers(tmp_path, data, lm, resume=True)[what]
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*File too large.*ulimit -f") as caught:
            again()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    if what == "harvest":
        # the shards before the lost one are still listed
        assert len(Manifest.read(folder).shards) == 1
        before = contents(folder)
    assert contents(folder) == before
    again()
    assert (what != "harvest") or ActivationStore.open(folder).n_rows >= 500


@pytest.mark.skipif(os.name == "nt", reason="counts how often folders are flushed, which Windows does not do")
def test_a_full_disk_at_any_write_of_training_leaves_a_run_to_resume(data, tmp_path, monkeypatch):
    whole, _ = sae_lib.train(data, METHOD, folder=tmp_path / "whole", **RUN)
    fsync = os.fsync
    # every file is synchronised, then its folder: log and checkpoint at 10, 20, 30, then the autoencoder
    for moment in range(0, 16, 2):
        calls, folder = iter(range(100)), tmp_path / str(moment)

        def full(descriptor, calls=calls, moment=moment):
            if next(calls) == moment:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(
                OSError, match=rf"cannot write {folder}/\w+\.\w+: No space left.*free space there"
            ):
                sae_lib.train(data, METHOD, folder=folder, **RUN)
        assert not list(folder.glob(".*.tmp"))
        resume = (folder / checkpoint.NAME).exists()
        assert resume == (moment > 2)
        sae, _ = sae_lib.train(data, METHOD, folder=folder, resume=resume, **RUN)
        assert torch.equal(sae.weight, whole.weight)
        assert contents(folder) == contents(tmp_path / "whole")


# ---- two writers


HOLDER = """
import sys
from pathlib import Path
from sae_lib.files.atomic import only_writer
with only_writer(Path(sys.argv[1]), "training in"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_trainings_in_one_folder_and_a_killed_one_does_not_block(data, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    before = contents(tmp_path)
    message = f"another process is training in {tmp_path}; wait for it, or"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        sae_lib.train(data, METHOD, folder=tmp_path, **RUN)
    assert contents(tmp_path) == before
    holder.kill()
    holder.communicate()
    sae_lib.train(data, METHOD, folder=tmp_path, **RUN)


def test_a_run_that_appears_while_another_starts_is_not_overwritten(data, tmp_path, monkeypatch):
    def late(*arguments):
        (tmp_path / checkpoint.NAME).write_text("somebody else's")
        return only_writer(*arguments)

    monkeypatch.setattr("sae_lib.training.loop.only_writer", late)
    with pytest.raises(ValueError, match="already holds a training run"):
        sae_lib.train(data, METHOD, folder=tmp_path, **RUN)
    assert (tmp_path / checkpoint.NAME).read_text() == "somebody else's"


def test_without_locks_there_is_a_warning(data, tmp_path, monkeypatch):
    def none(*_):
        raise NotImplementedError

    monkeypatch.setattr("sae_lib.files.atomic.FileLock.acquire", none)
    with pytest.warns(UserWarning, match="a file system without locks; let only one process"):
        sae_lib.train(data, METHOD, folder=tmp_path, **RUN)


# ---- damage


def test_any_flipped_bit_of_a_checkpoint_or_of_weights_is_found(data, tmp_path):
    sae_lib.train(data, METHOD, folder=tmp_path, **RUN)
    for name, use in (
        ("sae_weights.safetensors", lambda: sae_lib.load(tmp_path)),
        ("checkpoint.safetensors", lambda: sae_lib.train(data, METHOD, folder=tmp_path, resume=True, **RUN)),
    ):
        path = tmp_path / name
        good = path.read_bytes()
        for position in range(9, len(good), len(good) // 40):
            flip(path, position, bit=1 << position % 7)
            with pytest.raises((StorageError, CheckpointError), match=name):
                use()
            path.write_bytes(good)
        use()


def test_weights_beside_the_configuration_of_another_save_are_refused(tmp_path):
    SparseAutoencoder(4, 8, seed=0).save(tmp_path / "a")
    SparseAutoencoder(4, 8, seed=1).save(tmp_path / "b")
    (tmp_path / "a" / storage.WEIGHTS).replace(tmp_path / "b" / storage.WEIGHTS)
    with pytest.raises(StorageError, match=r"are from different saves.*save the autoencoder again"):
        sae_lib.load(tmp_path / "b")


def test_a_damaged_log_is_named(data, tmp_path):
    sae_lib.train(data, METHOD, folder=tmp_path, **RUN)
    for text, message in (("{", "line 1 of .*not valid JSON"), ("[1]", "line 1 of .*is not a record")):
        (tmp_path / "metrics.jsonl").write_text(text)
        with pytest.raises(ValueError, match=message):
            sae_lib.train(data, METHOD, folder=tmp_path, resume=True, **RUN)

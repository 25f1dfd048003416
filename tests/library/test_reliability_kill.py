"""Kill −9 at random moments: every file is old or new and whole, and going on gives the same bits."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from sae_lib.activations import ActivationStore

# finds the tests' own modules as pytest does
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
# imports once, then forks a process for every line it reads: a job and its folder
SERVER = """
import hashlib, json, os, signal, sys, time, traceback
import torch
torch.set_num_threads(1)
from lm_fixtures import language_model, text_corpus
import sae_lib
from sae_lib.files import tensors as tensor_files
from sae_lib.activations import harvest

data = sae_lib.synthetic.preset("uniform", n_features=24, d_in=12, n_rows=2000)
model, corpus = language_model(), text_corpus(30)
method = sae_lib.GroupBiasAdaptation(groups=3, every=7)
sae_lib.train  # imports it

def train(folder):
    resume = os.path.exists(f"{folder}/checkpoint.safetensors")
    sae_lib.train(data, method, width=64, steps=240, batch_size=64, folder=folder, resume=resume,
                  log_every=10, checkpoint_every=20)

def write_store(folder):
    harvest(model, corpus, "resid_post.1", folder, n_tokens=2_000, block_size=16, batch_blocks=3,
            shard_rows=90, skip_first=1, max_norm=1.1)

def note_versions(folder):
    '''Append name and hash of every file that takes its place.'''
    rename = os.replace
    def replace(source, target):
        rename(source, target)
        digest = hashlib.sha256(open(target, "rb").read()).hexdigest()
        with open(f"{folder}.versions", "a") as file:
            print(os.path.basename(target), digest, file=file)
    os.replace = replace

def die_in_the_middle_of(number):
    '''Kill the process within the hashing or writing of tensors number 1, 2, ….'''
    whole, calls, files = tensor_files._bytes, iter(range(10**6)), []
    def noted(*arguments):
        files.append(open(*arguments))
        return files[-1]
    def half(tensor):
        if next(calls) == number:
            # the one that is being written; none while tensors are hashed
            for file in files[-1:]:
                if not file.closed:
                    file.write(whole(tensor)[: tensor.nbytes // 2])
                    file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(tensor)
    # a module's own name goes before the built-in one
    tensor_files.open, tensor_files._bytes = noted, half

print("ready", flush=True)
for line in sys.stdin:
    job, folder, what, kill_after = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if what == "note":
                note_versions(folder)
            elif what:
                die_in_the_middle_of(what)
            {"train": train, "harvest": write_store}[job](folder)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        # not waited for yet, so the number is still its own
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """Runs a job in a process of its own, to its end or until it is killed."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], env=ENVIRONMENT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout.readline() == "ready\n"

    def run(self, job, folder, what=None, kill_after=None):
        """Exit code: 0, or −9 if it was killed, by us after some seconds or by itself."""
        print(json.dumps([job, str(folder), what, kill_after]), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.process.stdin.close()
    server.process.wait()
    server.process.stdout.close()


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(folder):
    return {p.name: digest(p) for p in folder.iterdir() if not p.name.startswith(".")}


def leftovers(folder):
    return [p.name for p in folder.glob(".*.tmp")]


@pytest.mark.slow
@pytest.mark.parametrize("job", ["train", "harvest"])
def test_ten_kills_and_still_the_same_bits(job, server, tmp_path):
    begin = time.perf_counter()
    assert server.run(job, tmp_path / "unbroken", "note") == 0
    length = time.perf_counter() - begin
    unbroken = contents(tmp_path / "unbroken")
    versions = {tuple(line.split()) for line in (tmp_path / "unbroken.versions").read_text().splitlines()}
    assert len(versions) > 20

    moments, kills, most_leftovers = random.Random(0), 0, 0
    folder = tmp_path / "broken"
    while kills < 10:
        # a run that went on after a kill is shorter than the unbroken one, and may end before its moment
        code = server.run(job, folder, kill_after=moments.uniform(0, length))
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        if folder.exists():
            # whatever stands there is what the unbroken run had at some time, byte for byte
            assert contents(folder).items() <= versions
            most_leftovers = max(most_leftovers, len(leftovers(folder)))
        if code == 0 or kills == 10:
            assert server.run(job, folder) == 0
            assert contents(folder) == unbroken
            assert not leftovers(folder)
            shutil.rmtree(folder)
    assert most_leftovers <= 3


@pytest.mark.slow
@pytest.mark.parametrize("job", ["train", "harvest"])
# the fourth is hashed, or in the second shard; the twenty-first is being written
@pytest.mark.parametrize("tensor", [3, 20])
def test_a_kill_within_the_writing_of_a_file(job, tensor, server, tmp_path):
    assert server.run(job, tmp_path / "unbroken") == 0
    folder = tmp_path / "broken"
    for _ in range(2):
        assert server.run(job, folder, tensor) == -signal.SIGKILL
        # the second run removed what the first one left
        assert len(leftovers(folder)) == (job == "harvest" or tensor == 20)
    if job == "harvest":
        for shard in json.loads((folder / "manifest.json").read_text())["shards"]:
            assert digest(folder / shard["file"]) == shard["sha256"]
    assert server.run(job, folder) == 0
    assert contents(folder) == contents(tmp_path / "unbroken")
    assert not leftovers(folder)
    if job == "harvest":
        # some are dropped for their length
        assert ActivationStore.open(folder).n_rows >= 1_000

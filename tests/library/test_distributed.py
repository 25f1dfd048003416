"""Several processes come to what one process comes to."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from distributed_worker import FEW, METHODS, SITES, begun, harvested, run, sparse
from safetensors.torch import load_file

import sae_lib
from sae_lib import Rows, distributed
from sae_lib.activations import ActivationStore
from sae_lib.distributed import World
from sae_lib.training import sharding

HERE = Path(__file__).parent
# processes find the tests' own modules as pytest does
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
SIZES = (2, 4)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one():
    """The same runs by one process."""
    runs = {name: run(method) for name, method in METHODS.items()}
    return runs | {"sparse": sparse(METHODS["gba-untied"])}


@pytest.fixture(scope="module", params=SIZES)
def job(request, tmp_path_factory):
    """A job that has done everything in ``distributed_worker``: its folder and size."""
    size, folder = request.param, tmp_path_factory.mktemp(f"job-{request.param}")
    begun(folder / "from-one", METHODS["gba-untied"])
    harvested(folder / "store-from-one", last=7)
    harvested(folder / "stores" / "resid_post.1")
    harvested(folder / "stores", last=7, sites=SITES[:2])
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "distributed_worker.py"), str(rank), str(size), str(folder)],
            stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )
        for rank in range(size)
    ]  # fmt: skip
    told = [process.communicate(timeout=300)[1] for process in processes]
    # at the end the last one dies, and the others notice
    codes = [process.returncode for process in processes]
    assert codes == [3] * (size - 1) + [9], "\n".join(told)
    return folder, size


def results(job, name):
    folder, size = job
    return [torch.load(folder / f"{name}-{rank}.pt") for rank in range(size)]


def assert_same_bits(a, b):
    assert a["log"] == b["log"]
    assert a["weights"].keys() == b["weights"].keys()
    for name in a["weights"]:
        assert torch.equal(a["weights"][name], b["weights"][name]), name


def assert_equal_up_to_rounding(a, b):
    for name in b["weights"]:
        torch.testing.assert_close(a["weights"][name], b["weights"][name], rtol=0, atol=1e-9, msg=name)
    assert len(a["log"]) == len(b["log"])
    for ours, theirs in zip(a["log"], b["log"], strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            # float32 where the log rounds to it
            assert ours[key] == pytest.approx(theirs[key], rel=1e-6, abs=1e-9), key


# ---- training


@pytest.mark.slow
def test_every_process_has_the_same_bits_and_one_process_the_same_up_to_rounding(job, one):
    for name in METHODS if job[1] == 2 else FEW:
        first, *others = results(job, f"data.{name}")
        for other in others:
            assert_same_bits(first, other)
        assert_equal_up_to_rounding(first, one[name])


def test_the_runs_put_every_shared_number_to_use(one):
    """Latents dead in TopK, and in GBA silent ones, whose bias rises by the mean peak of their group."""
    for name in ("gba", "gba-untied"):
        assert (one[name]["counters"]["rate"] < 0.005).any()
    assert one["topk"]["counters"]["dead"].any()


@pytest.mark.slow
def test_the_sparse_pass_gives_the_same(job, one):
    first, *others = results(job, "sparse")
    for other in others:
        assert_same_bits(first, other)
        # a resumed run starts from the first one's
        assert first["counters"]["density"] == other["counters"]["density"] < 0.15
    assert_equal_up_to_rounding(first, one["sparse"])


@pytest.mark.slow
def test_a_checkpoint_goes_from_one_process_to_several_and_back(job, one):
    folder, _ = job
    for resumed in results(job, "resumed"):
        assert_equal_up_to_rounding(resumed, one["gba-untied"])
    back = run(METHODS["gba-untied"], folder=folder / "to-one", resume=True)
    assert_equal_up_to_rounding(back, one["gba-untied"])
    # the same file, whoever writes it
    a, b = (load_file(folder / name / "checkpoint.safetensors") for name in ("from-one", "to-one"))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-9)


@pytest.mark.slow
def test_the_first_process_writes_the_files_and_they_hold_the_whole(job, one):
    folder, _ = job
    assert {p.name for p in (folder / "files").iterdir() if not p.name.startswith(".")} == {
        "cfg.json", "checkpoint.safetensors", "metrics.jsonl", "sae_weights.safetensors",
    }  # fmt: skip
    saved = sae_lib.load(folder / "files").state_dict()
    for name, value in results(job, "files")[0]["weights"].items():
        torch.testing.assert_close(saved[name].double(), value, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_all_start_from_the_numbers_of_the_first_frozen_rows_too(job, one):
    first, *others = results(job, "apart")
    for other in others:
        assert_same_bits(first, other)
    assert_equal_up_to_rounding(first, one["frozen"])


@pytest.mark.slow
def test_a_density_is_sent_only_where_a_sparse_pass_is_possible(job):
    for said in results(job, "messages"):
        assert said == {"small": 0, "large": 10}


@pytest.mark.slow
def test_off_trains_every_process_by_itself(job, one):
    for alone in results(job, "off"):
        assert_same_bits(alone, one["gba"])


@pytest.mark.slow
def test_what_cannot_be_shared_out_is_refused(job):
    size = job[1]
    for said in results(job, "refusals"):
        for text, expected in zip(
            said,
            [
                "batch_topk needs all rows of a batch in one process; use a single process",
                "modified_ba needs all rows of a batch in one process; use a single process",
                "frozen needs all rows of a batch in one process; use a single process",
                f"batch_size is {size - 1}; expected at least {size}, one for each process",
                "the processes do not read the same checkpoint in",
                "no checkpoint to resume from",
                "another process is harvesting into",
            ],
            strict=True,
        ):
            assert expected in text


def test_refusals_do_not_wait_for_several_processes(one, dice):
    data = torch.randn(64, 4, generator=dice)
    with pytest.raises(ValueError, match="parallel is 'latents'; expected one of auto, data, off"):
        sae_lib.train(data, sae_lib.L1(), width=8, parallel="latents")
    with pytest.raises(ValueError, match="batch_topk needs all rows"):
        sae_lib.train(data, sae_lib.BatchTopK(k=2), width=8, parallel="data")


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_the_run_can_be_taken_up(job, one):
    folder, size = job
    for rank in range(size - 1):
        text = (folder / f"orphaned-{rank}.txt").read_text()
        assert text.startswith("LostProcessError: another process of this job has died")
        assert "resume=True" in text
    resumed = run(METHODS["gba"], folder=folder / "orphaned", resume=True)
    assert_equal_up_to_rounding(resumed, one["gba"])


# ---- harvesting


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    harvested(folder)
    return contents(folder)


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


@pytest.mark.slow
def test_a_store_has_the_same_bytes_whoever_wrote_it(job, store):
    folder, _ = job
    assert len(store) > 10
    assert contents(folder / "store") == store
    assert contents(folder / "store-from-one") == store


@pytest.mark.slow
def test_several_sites_at_different_shards_are_finished_together(job, store, tmp_path):
    folder, _ = job
    for site in SITES:
        harvested(tmp_path / site, sites=(site,))
        assert contents(folder / "stores" / site) == contents(tmp_path / site)
    assert contents(folder / "stores" / "resid_post.1") == store


@pytest.mark.slow
def test_one_process_goes_on_with_what_several_began(job, store):
    folder, size = job
    unfinished = folder / "store-to-one"
    assert len(contents(unfinished)) == 1 + size
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        harvested(unfinished)
    assert contents(unfinished) == store


def test_processes_read_their_own_rows_of_a_store_and_cut_other_batches(tmp_path):
    harvested(tmp_path)
    store = ActivationStore.open(tmp_path)
    rows = Rows(store.rows(range(store.n_rows)))
    for source in (store, rows):
        whole = source.batches(50, seed=1, start=3)
        parts = [sharding.batches(World(rank, 4, rows=50), source, 50, seed=1, start=3) for rank in range(4)]
        for _ in range(3):
            assert torch.equal(next(whole), torch.cat([next(part) for part in parts]))


# ---- the pieces


def test_parts_cover_the_whole_in_order():
    for total in range(1, 12):
        for size in range(1, total + 1):
            parts = [range(total)[World(rank, size, total).part] for rank in range(size)]
            assert [i for part in parts for i in part] == list(range(total))
            assert size == 1 or max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_gets_back_what_it_gives(dice):
    world, value = World(), torch.randn(3, requires_grad=True, generator=dice)
    for back in (world.sum, world.max, world.mean, world.average):
        assert back(value) is value
    assert world.texts("ä") == ["ä"]
    assert world.any(True) is True
    assert distributed.place() == ""


# ---- the command line


def torchrun(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
         "sae_lib", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True,
    )  # fmt: skip


def written(path, process, after=0.0):
    """Wait for a file newer than a time."""
    while not (path.exists() and path.stat().st_mtime > after):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


@pytest.mark.slow
def test_torchrun_stopped_by_ctrl_c_then_killed_then_finished_by_one_process(tmp_path):
    out, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoint.safetensors"
    command = ["train", out, "--data", "imbalanced", "--width", 48, "--batch-size", 64, "--steps", 3000,
               "--checkpoint-every", 50]  # fmt: skip
    stopped = torchrun(*command)
    written(checkpoint, stopped)
    # as a terminal does it: to all processes at once
    os.killpg(stopped.pid, signal.SIGINT)
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode != 0
    assert "(process 1 of 2): training stopped after step" in errors
    assert "(process 2 of 2): training stopped after step" in errors

    before = checkpoint.stat().st_mtime
    killed = torchrun(*command, "--resume", "--timeout", 50)
    written(checkpoint, killed, after=before)
    children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    began = time.monotonic()
    _, errors = killed.communicate(timeout=60)
    assert time.monotonic() - began < 45
    assert killed.returncode != 0
    assert "Signal 9 (SIGKILL)" in errors
    assert not (out / "sae_weights.safetensors").exists()

    finished = subprocess.run(
        [sys.executable, "-m", "sae_lib", *map(str, command), "--resume"],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=200,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "step 3000: nmse" in finished.stdout
    assert sae_lib.load(out).width == 48


@pytest.mark.slow
def test_torchrun_trains_to_the_end_and_speaks_once(tmp_path):
    process = torchrun(
        "train",
        tmp_path / "run",
        "--data",
        "imbalanced",
        "--width",
        48,
        "--steps",
        20,
        "--parallel",
        "data",
    )
    printed, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert printed.count("step 20: nmse") == 1
    assert sae_lib.load(tmp_path / "run").width == 48

"""Fuzz: changed configurations, manifests and headers give documented errors and nothing else."""

import copy
import json
import math
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sae_lib
from sae_lib import GroupBiasAdaptation, SparseAutoencoder
from sae_lib.activations import ActivationStore
from sae_lib.activations.manifest import Manifest, write_shard
from sae_lib.storage import StorageError
from sae_lib.training.checkpoint import CheckpointError

RUN = {"width": 16, "steps": 20, "batch_size": 32, "log_every": 5}
METHOD = GroupBiasAdaptation(groups=2)


@pytest.fixture(scope="module")
def data():
    return sae_lib.synthetic.preset("uniform", n_features=24, d_in=12, n_rows=500)


ODD = [
    None, True, 0, -1, 1, 2, 3.5, 10**12, -(10**12), 10**400, float("nan"), float("inf"), "", "1", "topk",
    "jumprelu", "unit", "bfloat16", [], [1], {}, {"kind": "scale"}, {"scale": 10**400}, {"kind": []},
    {"kind": "scale", "scale": "x"}, "\ud800", "x" * 10_000,
]  # fmt: skip
for _ in range(100):
    ODD[-1] = [ODD[-1]]
FUZZ = settings(
    deadline=None,
    max_examples=80,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def places(value, path=()):
    """Where something stands in a JSON value, down to a depth of six."""
    if len(path) < 6 and isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*path, key)
            yield from places(value[key], (*path, key))


@st.composite
def changed_json(draw, good):
    """A valid JSON text with one to three values changed, dropped or added."""
    value = json.loads(good)
    for _ in range(draw(st.integers(1, 3))):
        if not (spots := list(places(value))):
            break
        *way, last = draw(st.sampled_from(spots))
        part = value
        for key in way:
            part = part[key]
        action = draw(st.sampled_from(["set", "set", "set", "drop", "add"]))
        if action == "drop":
            del part[last]
        elif action == "add" and isinstance(part, dict):
            part[draw(st.text(max_size=5))] = copy.deepcopy(draw(st.sampled_from(ODD)))
        else:
            part[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
    return json.dumps(value).encode()


def changed_bytes(good):
    """Random bytes, deep nesting, or the good ones cut, with some replaced."""
    return st.one_of(
        st.binary(max_size=60),
        st.sampled_from([b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5_000, b"NaN", b"null", b"\xff\xfe"]),
        st.integers(0, len(good)).map(lambda n: good[:n]),
        st.tuples(st.integers(0, len(good) - 1), st.binary(min_size=1, max_size=4)).map(
            lambda change: good[: change[0]] + change[1] + good[change[0] + len(change[1]) :]
        ),
    )


@st.composite
def changed_entry(draw, good):
    """A header that still covers its file: another type or shape of the same size, another name, no texts."""
    header = json.loads(good)
    name = draw(st.sampled_from(sorted(header)))
    action = draw(st.sampled_from(["type", "shape", "name", "drop"]))
    if name == "__metadata__":
        header.pop(name) if action == "drop" else header[name].popitem()
    elif action == "type":
        same = {"F32": "I32", "I32": "F32", "F16": "BF16", "I64": "C64", "F64": "I64", "BOOL": "F8_E5M2"}
        header[name]["dtype"] = draw(st.sampled_from([same[header[name]["dtype"]], "F4", "U8"]))
    elif action == "shape":
        shape = header[name]["shape"]
        others = [shape[::-1], [1, *shape], [math.prod(shape)], [*shape, 0], [0, 2**60]]
        header[name]["shape"] = draw(st.sampled_from(others))
    elif action == "name":
        header[draw(st.text(max_size=8))] = header.pop(name)
    return json.dumps(header).encode()


@st.composite
def changed_header(draw, good):
    """A safetensors file whose header, or its length, is not what it was."""
    length = struct.unpack("<Q", good[:8])[0]
    header, body = good[8 : 8 + length], good[8 + length :]
    header = draw(draw(st.sampled_from([changed_entry, changed_entry, changed_json, changed_bytes]))(header))
    claimed = draw(st.sampled_from([len(header)] * 20 + [0, len(header) - 1, 10**9, 2**63, 2**64 - 1]))
    return struct.pack("<Q", max(claimed, 0)) + header + body


def only_documented(use, path, *errors):
    """Call it; an error must be one of ``errors``, name the file and say something."""
    try:
        use()
    except errors as error:
        message = str(error)
    else:
        return
    assert str(path.parent) in message
    assert 30 < len(message) < 5_000


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    sae = SparseAutoencoder(4, 8, tied=False, free_encoder=True, activation="topk", k=2)
    sae.metadata = {"training": {"data": {"source": "test"}}}
    sae.save(folder)
    return folder, {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def store(tmp_path, dice):
    manifest = Manifest(
        {"block_size": 16, "blocks_per_shard": 4, "dtype": "float16", "n_tokens": 60}, 3, finished=True,
        normalisation={"kind": "scale", "scale": 2.0},
    )  # fmt: skip
    for i in range(2):
        acts, blocks = torch.randn(60, 3, generator=dice).half(), torch.zeros(4, 16)
        manifest.shards.append(write_shard(tmp_path, i, acts, blocks, torch.arange(60)))
    manifest.write(tmp_path)
    return tmp_path, {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def restored(fixture):
    folder, good = fixture
    for name, content in good.items():
        (folder / name).write_bytes(content)
    return folder, good


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
@FUZZ
@given(choice=st.data())
def test_fuzz_autoencoders(name, saved, choice):
    folder, good = restored(saved)
    kinds = [changed_json, changed_bytes] if name == "cfg.json" else [changed_header, changed_bytes]
    (folder / name).write_bytes(choice.draw(choice.draw(st.sampled_from(kinds))(good[name])))
    only_documented(lambda: sae_lib.load(folder), folder / name, StorageError)


def read_all(folder, verify):
    store = ActivationStore.open(folder, verify=verify)
    store.rows(range(store.n_rows))
    store.context(0)
    next(store.batches(1, seed=0))


@pytest.mark.parametrize("name", ["manifest.json", "shard-00001.safetensors"])
@FUZZ
@given(choice=st.data())
def test_fuzz_stores(name, store, choice):
    folder, good = restored(store)
    if name == "manifest.json":
        content = choice.draw(choice.draw(st.sampled_from([changed_json, changed_bytes]))(good[name]))
        verify = choice.draw(st.booleans())
    else:
        # a manifest that agrees on the size, hashes unread: the header alone has to tell
        content, verify = choice.draw(changed_header(good[name])), False
        manifest = json.loads(good["manifest.json"])
        manifest["shards"][1]["bytes"] = len(content)
        (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / name).write_bytes(content)
    only_documented(lambda: read_all(folder, verify), folder / name, ValueError, FileNotFoundError)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    sae_lib.train(data, METHOD, folder=folder, **RUN)
    return folder, {p.name: p.read_bytes() for p in folder.iterdir()}


@FUZZ
@given(choice=st.data())
def test_fuzz_checkpoints(trained, data, choice):
    folder, good = restored(trained)
    name = "checkpoint.safetensors"
    (folder / name).write_bytes(choice.draw(changed_header(good[name])))
    only_documented(
        lambda: sae_lib.train(data, METHOD, folder=folder, resume=True, **RUN), folder / name, CheckpointError
    )


def test_a_manifest_cannot_claim_more_rows_than_the_file_holds(store):
    folder, _ = store
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    values["settings"] |= {"block_size": 10**12}
    values["shards"][0] |= {"rows": 10**12}
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"shards\[0\].bytes is \d+, but its rows alone take"):
        ActivationStore.open(folder)
    values["shards"] = [values["shards"][0] | {"rows": 0}]
    values |= {"d_in": 10**12}
    values["settings"] |= {"block_size": 16}
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="finished is True but there are no rows"):
        ActivationStore.open(folder)

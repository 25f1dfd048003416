"""What is loaded: never unpickled, never believed before it is checked."""

import ast
import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from lm_fixtures import D_MODEL, language_model, text_corpus, tokenizer

import sae_lib
from sae_lib import GroupBiasAdaptation, SparseAutoencoder, language_models, records, sweeps
from sae_lib.activations import ActivationStore, harvest
from sae_lib.files.atomic import JSON_BYTES
from sae_lib.storage import StorageError
from sae_lib.training.checkpoint import CheckpointError

RUN = {"width": 16, "steps": 20, "batch_size": 32, "log_every": 5}
METHOD = GroupBiasAdaptation(groups=2)


@pytest.fixture(scope="module")
def data():
    return sae_lib.synthetic.preset("uniform", n_features=24, d_in=12, n_rows=500)


# ---- nothing is unpickled


def a_run(a):
    return {"b": a}


def test_no_loader_unpickles(data, tmp_path, monkeypatch):
    lm, model_folder = language_model(), tmp_path / "model"
    lm.model.save_pretrained(model_folder)
    tokenizer().save_pretrained(model_folder)
    sae_lib.train(data, METHOD, folder=tmp_path / "run", **RUN)
    harvest(lm, text_corpus(), "resid_post.1", tmp_path / "store", n_tokens=100, block_size=16)
    records.write(tmp_path / "record.json", [{"a": 1}], seconds=1)
    sweeps.sweep(a_run, [{"a": 1}], folder=tmp_path / "sweep", workers=1)

    def refuse(*_, **__):
        raise AssertionError("something is unpickled")

    for module, names in {pickle: ("load", "loads", "Unpickler"), torch: ("load",)}.items():
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    sae_lib.load(tmp_path / "run")
    sae_lib.train(data, METHOD, folder=tmp_path / "run", resume=True, **RUN)
    ActivationStore.open(tmp_path / "store").rows([0])
    records.read(tmp_path / "record.json")
    sweeps.sweep(a_run, [{"a": 1}], folder=tmp_path / "sweep", workers=1)
    assert language_models.load(model_folder).d_model == D_MODEL
    for evil in ("sae_weights.safetensors", "checkpoint.safetensors"):
        (tmp_path / "run" / evil).write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(StorageError, match="damaged"):
        sae_lib.load(tmp_path / "run")
    with pytest.raises(CheckpointError, match="damaged"):
        sae_lib.train(data, METHOD, folder=tmp_path / "run", resume=True, **RUN)


UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}


def unsafe_calls(source):
    """What in a source text could run code from a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in UNSAFE_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            yield node.module
        elif isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if (
                (call == "torch.load" and options.get("weights_only") != "True")
                or call in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "joblib.load", "eval", "exec")
                or options.get("allow_pickle", "False") != "False"
                or options.get("trust_remote_code", "False") != "False"
            ):
                yield call


def test_no_source_can_run_code_from_a_file():
    root = Path(sae_lib.__file__).parents[1]
    assert list(unsafe_calls("import pickle\ntorch.load(x)\nyaml.load(x)\nnp.load(x, allow_pickle=True)"))
    found = {
        str(path.relative_to(root)): unsafe
        for part in ("sae_lib", "sae_experiments", "tools", "benchmarks")
        for path in (root / part).rglob("*.py")
        if (unsafe := list(unsafe_calls(path.read_text("utf8"))))
    }
    assert not found


# ---- sizes before memory


def put_header(path, header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def sparse(path, header, size):
    """A file that has as many bytes as its header claims, without taking them on the disk."""
    put_header(path, header)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)


def test_sizes_are_checked_before_memory_is_taken(tmp_path):
    SparseAutoencoder(4, 8).save(tmp_path)
    config, weights = tmp_path / "cfg.json", tmp_path / "sae_weights.safetensors"
    good, trillion = config.read_text(), 10**12
    # the header and the configuration claim 10^12 numbers, the file does not have them
    config.write_text(json.dumps(json.loads(good) | {"d_in": 10**6, "d_sae": 10**6}))
    with pytest.raises(StorageError, match=r"W_enc is torch.float32 \(4, 8\); cfg.json says"):
        sae_lib.load(tmp_path)
    claim = {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * trillion]}
    put_header(weights, {"W_enc": claim})
    with pytest.raises(StorageError, match="damaged"):
        sae_lib.load(tmp_path)
    # the file has them, as a hole
    config.write_text(good)
    for size, message in ((trillion, "damaged"), (2**33, r"W_enc is torch\.uint8 .* cfg\.json says")):
        claim = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
        sparse(weights, {"W_enc": claim}, size)
        with pytest.raises(StorageError, match=message):
            sae_lib.load(tmp_path)
    config.write_bytes(b" " * (JSON_BYTES + 1))
    with pytest.raises(StorageError, match=f"has {JSON_BYTES + 1} bytes; expected at most"):
        sae_lib.load(tmp_path)

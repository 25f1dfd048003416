"""Saved autoencoders: round trip, SAELens, damaged files."""

import json
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file

import sae_lib
from sae_lib import (
    L1,
    BiasAdaptation,
    Gated,
    GroupBiasAdaptation,
    JumpReLU,
    Normalisation,
    SparseAutoencoder,
    TopK,
    synthetic,
    train,
)
from sae_lib.language_models import Site
from sae_lib.storage import StorageError


@dataclass(frozen=True)
class Thresholded(L1):
    """Builds the gate that JumpReLU, gated and BatchTopK autoencoders end with."""

    free: bool = True
    name = "threshold"

    def build(self, d_in, width, *, normalisation, seed):
        sae = SparseAutoencoder(
            d_in, width, tied=not self.free, free_encoder=self.free, activation="threshold",
            normalisation=normalisation, seed=seed,
        )  # fmt: skip
        sae.threshold.data = 0.3 * torch.rand(width, generator=torch.Generator().manual_seed(seed))
        return sae


METHODS = [
    Thresholded(),
    Thresholded(free=False, centre=True),
    GroupBiasAdaptation(groups=3),
    GroupBiasAdaptation(groups=3, tied=False, centre=True),
    BiasAdaptation(0.1),
    L1(centre=True),
    TopK(k=4, centre=True),
    TopK(k=4, tied=True),
]
KINDS = ["none", "scale", "unit"]


def trained_like(method, kind, seed=0):
    """An autoencoder with every parameter away from its starting value, and raw rows for it."""
    generator = torch.Generator().manual_seed(seed)
    rows = 30 * torch.randn(200, 8, generator=generator)
    normalisation = Normalisation.fit(kind, rows)
    sae = method.build(8, 20, normalisation=normalisation, seed=seed)
    scaled = normalisation.apply(rows)
    method.start(sae, scaled)
    with torch.no_grad():
        for p in sae.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn(p.shape, generator=generator))
        if not sae.free_encoder:
            sae.scale[3] *= -1
        sae.unit_rows_()
    return sae, rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_round_trip(method, kind, tmp_path):
    sae, rows = trained_like(method, kind)
    sae.metadata = {"training": {"data": {"source": "test"}, "steps": 3}}
    sae.save(tmp_path / "a" / "b")
    loaded = sae_lib.load(tmp_path / "a" / "b")
    assert loaded.normalisation == sae.normalisation
    assert (loaded.tied, loaded.activation, loaded.k) == (sae.tied, sae.activation, sae.k)
    assert loaded.metadata == sae.metadata
    torch.testing.assert_close(loaded.encode(rows), sae.encode(rows), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loaded.reconstruct(rows), sae.reconstruct(rows), atol=1e-3, rtol=1e-4)
    assert not any(p.name.endswith(".tmp") for p in (tmp_path / "a" / "b").iterdir())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_the_files_mean_what_saelens_says(method, kind, tmp_path):
    """The published forward pass of each architecture, written out in float64."""
    sae, rows = trained_like(method, kind)
    sae.save(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    t = {k: v.double() for k, v in load_file(tmp_path / "sae_weights.safetensors").items()}
    x = rows.double()
    factor = torch.ones(len(x), 1).double()
    if config["normalize_activations"] == "constant_norm_rescale":
        factor = 8**0.5 / x.norm(dim=1, keepdim=True)
    pre = (x * factor - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    if config["architecture"] == "jumprelu":
        codes = torch.relu(pre) * (pre > t["threshold"])
    else:
        codes = torch.relu(pre)
    if config["architecture"] == "topk":
        kth = codes.topk(config["k"], dim=1).values[:, -1:]
        codes = codes * (codes >= kth)
    output = (codes @ t["W_dec"] + t["b_dec"]) / factor
    torch.testing.assert_close(sae.reconstruct(rows).double(), output, atol=1e-3, rtol=1e-4)
    if config["architecture"] != "topk":
        torch.testing.assert_close(t["W_dec"].norm(dim=1), torch.ones(20).double())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_saelens_loads_it(method, kind, tmp_path):
    sae_lens = pytest.importorskip("sae_lens", reason="optional extra: pip install sae_lib[bench]")
    sae, rows = trained_like(method, kind)
    sae.save(tmp_path)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    with torch.no_grad():
        codes = theirs.encode(rows)
        torch.testing.assert_close(theirs.decode(codes), sae.reconstruct(rows), atol=1e-3, rtol=1e-4)
    ours = sae.encode(rows)
    unit = 8**-0.5 if kind == "unit" else sae.normalisation.scale
    magnitude = 1 if sae.activation == "topk" else sae.scale.abs()
    torch.testing.assert_close(codes, ours * magnitude / unit, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "method",
    [JumpReLU(coefficient=0.02, bandwidth=0.05, threshold=0.05, warmup=20, centre=True), Gated(centre=True)],
    ids=lambda m: m.name,
)
def test_a_trained_gate_with_bias_and_threshold_keeps_its_codes_to_the_bit(method, tmp_path):
    data = synthetic.preset("uniform", n_features=24, d_in=12, n_rows=2000)
    sae, _ = train(data, method, width=32, steps=60, batch_size=64)
    sae.save(tmp_path)
    loaded = sae_lib.load(tmp_path)
    assert torch.equal(loaded.encode(data.rows), sae.encode(data.rows))
    torch.testing.assert_close(loaded(data.rows), sae(data.rows))
    sae_lens = pytest.importorskip("sae_lens", reason="optional extra: pip install sae_lib[bench]")
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    torch.testing.assert_close(theirs.encode(data.rows), sae.encode(data.rows), atol=1e-5, rtol=1e-4)


def test_where_the_activations_come_from_stands_under_saelens_names(tmp_path):
    sae, _ = trained_like(TopK(k=4), "none")
    data = {"model": {"name": "some/model"}, "site": "attn_out.3", "block_size": 256}
    sae.metadata = {"training": {"data": data}}
    sae.save(tmp_path)
    metadata = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    assert metadata["model_name"] == "some/model"
    assert metadata["hook_name"] == "blocks.3.hook_attn_out"
    assert metadata["context_size"] == 256
    assert Site.parse(metadata["hook_name"]) == Site("attn_out", 3)


def test_a_jumprelu_gate_survives_exactly(tmp_path):
    sae = SparseAutoencoder(1, 2)
    with torch.no_grad():
        sae.weight.copy_(torch.ones(2, 1))
        sae.bias.copy_(torch.tensor([-0.5, -0.25]))
    sae.save(tmp_path)
    at_threshold = torch.tensor([[0.5]])
    assert (
        sae_lib.load(tmp_path).encode(at_threshold).tolist()
        == sae.encode(at_threshold).tolist()
        == [[0, 0.5]]
    )


def test_a_jumprelu_of_another_program_with_bias_and_negative_thresholds(tmp_path):
    """Its formula, relu(pre) · 1[pre > θ], written out; a θ below 0 must not let negative codes through."""
    stream = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (6, 9), "W_dec": (9, 6), "b_enc": (9,), "b_dec": (6,), "threshold": (9,)}
    tensors = {name: torch.randn(shape, generator=stream) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    config = {"architecture": "jumprelu", "d_in": 6, "d_sae": 9, "metadata": {"sae_lens_version": "6.9.0"}}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    rows = torch.randn(50, 6, generator=stream)
    pre = (rows - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    codes = torch.relu(pre) * (pre > tensors["threshold"])
    sae = sae_lib.load(tmp_path)
    assert sae.activation == "threshold"
    torch.testing.assert_close(sae.encode(rows), codes)
    torch.testing.assert_close(sae.reconstruct(rows), codes @ tensors["W_dec"] + tensors["b_dec"])


@pytest.fixture
def saved(tmp_path):
    sae, _ = trained_like(GroupBiasAdaptation(groups=3), "none")
    sae.save(tmp_path)
    return tmp_path


def edit(folder, **changes):
    path = folder / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "cfg.json").unlink(), "cfg.json does not exist"),
        (lambda f: (f / "sae_weights.safetensors").unlink(), "sae_weights.safetensors does not exist"),
        (lambda f: (f / "cfg.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "cfg.json").write_text("[1]"), "expected an object"),
        (lambda f: edit(f, architecture="transcoder"), "jumprelu, standard, topk"),
        (lambda f: edit(f, architecture="topk"), "k is None"),
        (lambda f: edit(f, d_in=9), r"W_enc is torch.float32 \(8, 20\); cfg.json says .* \(9, 20\)"),
        (lambda f: edit(f, d_sae="20"), "d_sae is '20'"),
        (lambda f: edit(f, normalize_activations="layer_norm"), "layer_norm"),
        (
            lambda f: (f / "sae_weights.safetensors").write_bytes(
                (f / "sae_weights.safetensors").read_bytes()[:-10]
            ),
            "damaged",
        ),
        (lambda f: save_file({"x": torch.ones(1)}, f / "sae_weights.safetensors"), "lacks W_enc"),
    ],
)
def test_unusable_files_are_refused(saved, damage, message):
    damage(saved)
    with pytest.raises(StorageError, match=message):
        sae_lib.load(saved)


def test_weights_that_are_not_finite_are_refused(saved):
    path = saved / "sae_weights.safetensors"
    tensors = load_file(path)
    tensors["W_enc"][0, 0] = float("inf")
    # as another program would write them, without a hash
    save_file(tensors, path)
    with pytest.raises(StorageError, match="W_enc holds NaN or infinity"):
        sae_lib.load(saved)


def test_a_failed_save_leaves_the_old_files(saved, monkeypatch):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}

    def full_disk(path, *_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sae_lib.storage.write_tensors", full_disk)
    with pytest.raises(OSError, match="No space"):
        SparseAutoencoder(8, 20).save(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before

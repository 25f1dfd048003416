"""Rows go in and come out as the model has them, whatever the normalisation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sae_lib
from sae_lib import Normalisation, SparseAutoencoder

D_IN, WIDTH = 6, 11
ACTIVATIONS = ["jumprelu", "relu", "threshold", "topk"]


def autoencoder(kind: str, activation: str, seed: int = 0) -> SparseAutoencoder:
    """One with every parameter away from where it starts, in float64."""
    dice = torch.Generator().manual_seed(seed)
    normalisation = Normalisation(kind, 0.25 if kind == "scale" else 1.0)
    k = 3 if activation == "topk" else None
    sae = SparseAutoencoder(
        D_IN, WIDTH, tied=False, activation=activation, k=k, normalisation=normalisation, seed=seed
    ).double()
    sae.requires_grad_(False)
    for name in ("scale", "bias", "pre_bias"):
        value = getattr(sae, name)
        value += 0.3 * torch.randn(value.shape, generator=dice, dtype=torch.float64)
    if sae.threshold is not None:
        sae.threshold += 0.1
    return sae


def by_hand(sae: SparseAutoencoder, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and reconstruction of one row (d,) in NumPy, latent by latent."""
    length = {"none": 1.0, "scale": 1 / sae.normalisation.scale, "unit": float(np.linalg.norm(rows))}
    length = length[sae.normalisation.kind]
    x = rows / length
    u = sae.weight.numpy() @ (x - sae.pre_bias.numpy())
    y = u + sae.bias.numpy()
    if sae.activation == "jumprelu":
        codes = np.where(y > 0, u, 0.0)
    elif sae.threshold is not None:
        codes = np.where(y > sae.threshold.numpy(), y, 0.0)
    else:
        codes = np.maximum(y, 0.0)
        if sae.k is not None:
            codes[np.argsort(codes)[: -sae.k]] = 0.0
    written = sum(
        float(a) * z * v for a, z, v in zip(sae.scale.numpy(), codes, sae.decoder_rows.numpy(), strict=True)
    )
    return codes, length * (written + sae.pre_bias.numpy())


@settings(max_examples=30)
@given(
    kind=st.sampled_from(["none", "scale", "unit"]),
    activation=st.sampled_from(ACTIVATIONS),
    seed=st.integers(0, 10_000),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_equal_to_the_definition_written_out_row_by_row(kind, activation, seed, size):
    sae = autoencoder(kind, activation, seed)
    rows = size * torch.randn(5, D_IN, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    expected = [by_hand(sae, row) for row in rows.numpy()]
    codes, rebuilt = (torch.from_numpy(np.stack(part)) for part in zip(*expected, strict=True))
    torch.testing.assert_close(sae.encode(rows), codes)
    torch.testing.assert_close(sae.decode(sae.encode(rows), like=rows), rebuilt)
    torch.testing.assert_close(sae.reconstruct(rows), rebuilt)
    assert torch.equal(sae(rows), sae.reconstruct(rows))


@pytest.mark.parametrize("kind", ["none", "scale", "unit"])
def test_rows_of_a_block_keep_their_shape(kind):
    sae = autoencoder(kind, "topk")
    blocks = torch.randn(2, 5, D_IN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat = blocks.flatten(0, 1)
    assert sae.encode(blocks).shape == (2, 5, WIDTH)
    torch.testing.assert_close(sae.encode(blocks).flatten(0, 1), sae.encode(flat))
    torch.testing.assert_close(sae.reconstruct(blocks).flatten(0, 1), sae.reconstruct(flat))
    torch.testing.assert_close(sae.encode(blocks[0, 0]), sae.encode(flat)[0])


def test_a_power_of_two_changes_no_bit():
    """Rows eight times as long with an eighth of the scale: the same codes, and errors of the same share."""
    rows = torch.randn(100, D_IN, generator=torch.Generator().manual_seed(0))
    plain = SparseAutoencoder(D_IN, WIDTH, activation="relu")
    scaled = SparseAutoencoder(D_IN, WIDTH, activation="relu", normalisation=Normalisation("scale", 0.125))
    assert torch.equal(scaled.encode(8 * rows), plain.encode(rows))
    assert torch.equal(scaled.reconstruct(8 * rows), 8 * plain.reconstruct(rows))
    measured = [sae_lib.metrics.reconstruction(s, x) for s, x in ((plain, rows), (scaled, 8 * rows))]
    assert measured[0].nmse == measured[1].nmse


def test_training_batches_and_rows_of_the_model_give_the_same_codes():
    rows = 30 * torch.randn(600, D_IN, generator=torch.Generator().manual_seed(0))
    source = sae_lib.Rows(rows, Normalisation.fit("scale", rows))
    sae, _ = sae_lib.train(source, sae_lib.TopK(k=2), width=WIDTH, steps=5, batch_size=100)
    assert sae.normalisation == source.normalisation
    normalised = sae.gate(sae.project_normalised(source.rows))
    torch.testing.assert_close(sae.encode(rows), normalised)


@pytest.mark.parametrize("call", ["encode", "reconstruct", "project", "magnitudes", "forward"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.ones(4, D_IN + 1), rf"\(4, {D_IN + 1}\); this autoencoder expects \(…, {D_IN}\)"),
        (torch.ones(()), r"shape \(\)"),
        (torch.ones(4, D_IN).double(), r"float64.*float32.*rows\.to\(torch\.float32\)"),
        (torch.ones(4, D_IN).half(), r"float16.*rows\.to"),
        (torch.ones(4, D_IN).long(), r"int64.*rows\.to"),
    ],
    ids=["width", "number", "float64", "float16", "int64"],
)
def test_rows_of_another_width_or_type_are_refused(call, rows, message):
    sae = SparseAutoencoder(D_IN, WIDTH)
    with pytest.raises(ValueError, match=message):
        getattr(sae, call)(rows)


def test_codes_of_another_width_are_refused_and_unit_rows_need_their_lengths():
    with pytest.raises(ValueError, match=rf"\(2, {D_IN}\); expected \(…, {WIDTH}\)"):
        SparseAutoencoder(D_IN, WIDTH).decode(torch.ones(2, D_IN))
    unit = SparseAutoencoder(D_IN, WIDTH, normalisation=Normalisation("unit"))
    with pytest.raises(ValueError, match=r"decode\(codes, like=rows\)"):
        unit.decode(torch.ones(2, WIDTH))

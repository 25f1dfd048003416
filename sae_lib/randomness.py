"""Independent random streams from one seed."""

import hashlib

import torch


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator that depends on the seed *and* on its purpose.

    Two purposes with the same seed must never share a stream: an autoencoder initialised from the stream that
    drew the true dictionary would start with the answer.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

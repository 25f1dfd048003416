"""One training run or one harvest on several processes, as ``torchrun`` starts them.

How the processes find one another and what they can send is in :mod:`sae_lib.distributed.process_group`; how
they share out the rows of a batch, in :class:`World`.
"""

from sae_lib.distributed.process_group import TIMEOUT, LostProcessError, join, launched, local, place
from sae_lib.distributed.world import ALONE, WAYS, World

__all__ = [
    "ALONE", "TIMEOUT", "WAYS", "LostProcessError", "World", "join", "launched", "local", "place",
]  # fmt: skip

"""Training: the loop, its log, and checkpoints from which it goes on to the same bits."""

from sae_lib.training.loop import SAMPLE_ROWS, SCHEDULES, NonFiniteLossError, learning_rate, train

__all__ = ["SAMPLE_ROWS", "SCHEDULES", "NonFiniteLossError", "learning_rate", "train"]

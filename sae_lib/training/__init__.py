"""Training: the loop, its log, and checkpoints from which it resumes bit for bit."""

from sae_lib.training.loop import SAMPLE_ROWS, SCHEDULES, NonFiniteLossError, learning_rate, train

__all__ = ["SAMPLE_ROWS", "SCHEDULES", "NonFiniteLossError", "learning_rate", "train"]

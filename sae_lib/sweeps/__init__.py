"""Many runs over seeds, methods and settings: made, summarised, tuned."""

from sae_lib.sweeps.spread import Spread, spread, summary
from sae_lib.sweeps.sweep import SweepError, sweep
from sae_lib.sweeps.tuning import Tuned, tune

__all__ = ["Spread", "SweepError", "Tuned", "spread", "summary", "sweep", "tune"]

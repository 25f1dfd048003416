"""Examples of property tests are the same in every run, so that one run says what the next will.

`HYPOTHESIS_PROFILE=default python -m pytest` looks for new ones.
"""

import os

from hypothesis import settings

settings.register_profile("fixed", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

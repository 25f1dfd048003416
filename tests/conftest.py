"""What all test files share: the examples of property tests, the seed, threads, the order of files.

Examples are the same in every run, so that one run says what the next will;
`HYPOTHESIS_PROFILE=default python -m pytest` looks for new ones.
"""

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("fixed", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# a process for each core: more threads would only wait for each other
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


# a file's tests stay in one process: these take minutes, so they start first and none is left for the end
LONG = (
    "test_browser.py",
    "test_cli.py",
    "test_distributed.py",
    "test_triton.py",
    "test_experiments_paper_scale.py",
    "test_editions.py",
    "test_run.py",
    "test_training.py",
    "test_published.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    # what is drawn without a generator is the same in every run and whatever ran before it; tests have `dice`
    torch.manual_seed(0)


@pytest.fixture
def dice() -> torch.Generator:
    """What a test draws from that needs some numbers, whichever."""
    return torch.Generator().manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))

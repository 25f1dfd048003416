"""The Triton kernels: in Triton's interpreter, compiled for GPUs that are not there, and on one that is."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from sae_lib import kernels
from sae_lib.kernels import reference
from tools.layout import REPOSITORY

HERE = Path(__file__).parent


def installed() -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version("triton").split(".")[:2])
    except PackageNotFoundError:
        return ()


needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed (Linux only)")
# before, the interpreter breaks off where NumPy ≥ 2.4 turns no array of one number into a number
needs_interpreter = pytest.mark.skipif(installed() < (3, 7), reason="no Triton, or one before 3.7")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def passes(*command, **environment):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


def checks(**environment):
    passes("-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_checks.py"), **environment)


@pytest.mark.slow
@needs_interpreter
def test_kernels_do_what_the_plain_operations_do_in_the_interpreter():
    checks(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.slow
@needs_triton
@needs_gpu
def test_kernels_do_what_the_plain_operations_do_on_a_gpu():
    checks(TRITON_INTERPRET="0")


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("capability", [80, 86, 90])
def test_kernels_compile(capability):
    passes(str(HERE / "triton_compile.py"), str(capability), TRITON_INTERPRET="0")


@needs_triton
def test_the_precision_of_float32_whichever_switch_was_used():
    switches = [("pass", "ieee"), ("m.allow_tf32 = True", "tf32"), ("m.allow_tf32 = False", "ieee")]
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        # from then on, reading allow_tf32 raises
        switches += [("m.fp32_precision = 'tf32'", "tf32"), ("m.fp32_precision = 'ieee'", "ieee")]
    told = "; ".join(f"{switch}; assert gpu.cuda_precision() == '{value}'" for switch, value in switches)
    passes("-c", f"import torch; from sae_lib.kernels import gpu; m = torch.backends.cuda.matmul; {told}")


def test_a_gpu_gets_the_triton_kernels_where_triton_is_installed(monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setattr(kernels, "_has_triton", lambda: False)
    assert kernels.backend(device) is reference
    if find_spec("triton"):
        monkeypatch.undo()
        assert kernels.backend(device).__name__ == "sae_lib.kernels.gpu"


def test_the_library_does_not_import_triton():
    code = (
        "import sys; sys.modules['triton'] = None; import sae_lib, sae_lib.cli; from sae_lib import kernels"
    )
    passes("-c", f"{code}; assert not kernels._has_triton(); assert 'sae_lib.kernels.gpu' not in sys.modules")

"""What a result was computed with: command, hardware, versions and the state of this library."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "transformers")


def hardware() -> dict[str, Any]:
    """Return processor, number of cores, GPU and memory in GiB, without the host name."""
    return {"cpu": _cpu(), "cores": os.cpu_count(), "gpu": _gpu(), "ram_gib": round(memory_bytes() / 2**30)}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the numbers."""
    import sae_lib

    found = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    try:
        return found | {"sae_lib": version("sae_lib")}
    except PackageNotFoundError:
        # a checkout that is not installed
        return found | {"sae_lib": sae_lib.__version__}


def command() -> str:
    """Return the command line that started this process: "python -m MODULE ARGUMENTS", or "interactive".

    The environment variable ``SAE_LIB_COMMAND`` takes its place; the book's kernels have it set. Absolute
    paths are shortened: relative to the working directory, or to their last part elsewhere.
    """
    if stated := os.environ.get("SAE_LIB_COMMAND"):
        return stated
    main = sys.modules["__main__"]
    if spec := getattr(main, "__spec__", None):
        program = ["-m", spec.name.removesuffix(".__main__")]
    elif script := getattr(main, "__file__", None):
        program = [_shortened(os.path.abspath(script))]
    else:
        return "interactive"
    if program[-1] == "ipykernel_launcher":
        return "interactive"
    return shlex.join(["python", *program, *map(_shortened, sys.argv[1:])])


def _shortened(argument: str) -> str:
    """Drop the folders above this one from ``/home/me/book/x.json`` and ``--record=/home/me/book/x.json``."""
    option, equals, value = argument.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return argument
    inside = path.is_relative_to(Path.cwd())
    return f"{option}{equals}{path.relative_to(Path.cwd()).as_posix() if inside else path.name}"


@functools.cache
def library_sha256() -> str:
    """Return one hash over all source files of ``sae_lib``."""
    package = Path(__file__).parents[1]
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        total.update(path.relative_to(package).as_posix().encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _cpu() -> str:
    """Return the processor's model name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu() -> str:
    """Return the first GPU's name, from the driver's tool, because importing torch takes seconds."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return "none"
    query = [tool, "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.splitlines()[0].strip() if answer.returncode == 0 and answer.stdout else "none"


def memory_bytes() -> int:
    """Return how many bytes of memory the machine has."""
    if sys.platform != "win32":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # MEMORYSTATUSEX: its own size first, the physical memory second
    status = (ctypes.c_ulonglong * 8)(64)
    ctypes.windll.kernel32.GlobalMemoryStatusEx(status)
    return status[1]


def peak_bytes() -> int:
    """Return the most bytes of memory that this process has held."""
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    # PROCESS_MEMORY_COUNTERS: its own size first, the largest working set second; −1 is this process
    counters = (ctypes.c_size_t * 9)(72)
    ctypes.windll.kernel32.K32GetProcessMemoryInfo(ctypes.c_void_p(-1), counters, 72)
    return counters[1]

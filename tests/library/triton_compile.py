"""Compiles the Triton kernels for GPUs of a compute capability, without one: see test_triton.py."""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sae_lib.kernels import gpu, triton_entries, triton_scan

TYPES = {
    **dict.fromkeys(["rows", "latents", "latent_ends", "row_order", "row_ends"], "*i64"),
    **dict.fromkeys(["totals", "total"], "*i64"),
    **dict.fromkeys(["n_rows", "width", "d", "capacity", "n_groups", "n_entries"], "i32"),
}
# bytes of shared memory that a program may use, by capability
SHARED = {80: 166_912, 86: 101_376, 90: 232_448}
SMALL = {"ROWS": 16, "LATENTS": 32, "DEPTH": 16}


def compile_for(capability, kernel, constants, types=(), **options):
    """Compile; types: of arguments where they differ from TYPES or, of those not there, from float32."""
    types = {**TYPES, **dict(types)}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    # as at run time: tensors and sizes that are multiples of 16
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in constants}
    source = ASTSource(kernel, signature, constexprs=places, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= SHARED[capability]


def main(capability):
    """The scan in all its forms, the others with the sizes that ``gpu`` gives them."""
    for factors, size, keys, whole, precision in (
        ("bf16", 2, "*i32", True, "ieee"),
        ("fp16", 2, "*i64", False, "ieee"),
        ("fp32", 4, "*i32", True, "ieee"),
        ("fp32", 4, "*i64", False, "tf32"),
    ):
        tiles = gpu.gpu_tiles(size, divmod(capability, 10))
        options = {name: tiles.pop(name) for name in ("num_warps", "num_stages")}
        types = {"x": "*" + factors, "weight": "*" + factors, "keys": keys}
        constants = {**tiles, "WHOLE": whole, "PRECISION": precision}
        compile_for(capability, triton_scan.scan_tile, constants, types, **options)
    # a size of 1 is a constant to Triton
    sizes = dict.fromkeys(["n_rows", "width", "d", "capacity"], 1)
    compile_for(capability, triton_scan.scan_tile, constants | sizes | SMALL, types)
    for keys in ("*i32", "*i64"):
        types = {"groups": keys, "keys": keys}
        compile_for(capability, triton_scan.collect_groups, {"BLOCK": gpu.BLOCK}, types)
    for kernel, entries, columns in (
        (triton_entries.decode_row, *gpu.DECODE),
        (triton_entries.dot_entries, *gpu.DOTS),
        (triton_entries.accumulate_latent, *gpu.ACCUMULATE),
    ):
        for d in (columns, 16):
            compile_for(capability, kernel, {"ENTRIES": entries, "COLUMNS": d})


if __name__ == "__main__":
    main(int(sys.argv[1]))

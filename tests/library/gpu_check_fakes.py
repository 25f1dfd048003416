"""Parts for the tests of the runner, each called in a process of its own: see test_gpu_check.py."""

import time


def good(context):
    context.row("measured", value=1.0, nothing=float("nan"))


def fails(context):
    context.attempt("first", lambda: 1 / 0)
    context.row("second", value=2)
    raise RuntimeError("the GPU is gone\nand much else")


def hangs(context):
    context.row("before", value=3)
    with context.rows.open("a") as file:
        # as if killed while writing
        file.write('{"name": "cut')
    time.sleep(600)

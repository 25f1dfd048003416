"""The exercises of a chapter: their form, and the proof that a stub left as it is fails with words that help.

Each has a difficulty, minutes and a stub (```python) that ends by calling the chapter's own check, and a
solution between `solution-start` and `solution-end` with at least one code cell. The solution's cells are
cells of the chapter, so a run of the chapter proves them. The stubs are run after the chapter's last cell, in
its kernel, by cells that are taken off again.
"""

import re
from dataclasses import dataclass

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from tools.layout import BookError
from tools.plain import Block, blocks

PLAN = re.compile(r"^Difficulty (●○○|●●○|●●●) · (\d+ minutes?)\.")
OUTCOME = "application/vnd.exercise+json"
# Runs a stub on a copy of the chapter's names, so that what it assigns stays its own. It catches everything,
# since an error would end the run, and hands on (type, whether an AssertionError, message).
PROBE = """\
try:
    exec(compile({stub!r}, {label!r}, "exec"), dict(globals()))
    __outcome = None
except BaseException as __error:
    __outcome = [type(__error).__name__, isinstance(__error, AssertionError), str(__error)]
get_ipython().display_pub.publish({{{mime!r}: __outcome}})
"""


@dataclass(frozen=True)
class Exercise:
    """One exercise as its chapter states it: ``difficulty`` as ●○○, ``minutes`` as "5 minutes"."""

    label: str
    title: str
    difficulty: str
    minutes: str
    stub: str


def stub_of(part: Block) -> str | None:
    """Return the Python of a block inside an exercise, None where it is something else."""
    is_stub = part.kind == "code" and part.text.startswith("```python\n")
    return "\n".join(part.text.split("\n")[1:-1]) if is_stub else None


def exercises(notebook: NotebookNode) -> list[Exercise]:
    """Return the exercises of a chapter, in order; their author is told all that breaks the form."""
    tasks: list[Exercise] = []
    wrong: list[str] = []
    solved = _code_cells_of_solutions(notebook)
    labels: list[str] = []
    parts = (part for cell in notebook.cells if cell.cell_type == "markdown" for part in blocks(cell.source))
    for block in (part for part in parts if part.kind == "exercise"):
        label = block.options.get("label", "")
        where = f"exercise {label or repr(block.title)}"
        plan = PLAN.match(block.text)
        stubs = [stub for part in blocks(block.text) if (stub := stub_of(part)) is not None]
        if not label:
            wrong.append(f"{where} has no label; add :label: chNN-ex-name")
        if label in labels:
            wrong.append(f"{where} comes twice; labels must differ")
        if not plan:
            first = block.text.split("\n")[0][:40]
            wrong.append(
                f'{where} begins {first!r}; it must begin "Difficulty ●○○ · 5 minutes." (●○○ to ●●●)'
            )
        if len(stubs) != 1:
            wrong.append(f"{where} has {len(stubs)} ```python fences; expected one, the stub to fill in")
        if not solved.get(label):
            missing = "no code cell in its solution" if label in solved else "no solution"
            wrong.append(
                f"{where} has {missing}; add {{solution-start}} {label}, a cell that calls the check with "
                "the right answer, {solution-end}"
            )
        labels.append(label)
        if plan and stubs:
            tasks.append(Exercise(label, block.title, plan[1], plan[2], stubs[0]))
    wrong += [f"a solution names {label!r}, which is no exercise" for label in solved if label not in labels]
    if wrong:
        raise BookError("\n".join(wrong))
    return tasks


def probes(tasks: list[Exercise]) -> list[NotebookNode]:
    """Return a cell for each exercise, to be appended to its chapter, that runs the stub as it is."""
    return [
        new_code_cell(PROBE.format(stub=task.stub, label=f"<{task.label}>", mime=OUTCOME)) for task in tasks
    ]


def messages(tasks: list[Exercise], executed: list[NotebookNode]) -> dict[str, str]:
    """Return what each stub says to who has not begun, by label, from the executed :func:`probes`.

    A stub that passes, fails by another error than AssertionError, or says nothing is refused.
    """
    said, wrong = {}, []
    for task, cell in zip(tasks, executed, strict=True):
        (outcome,) = [o.data[OUTCOME] for o in cell.outputs if OUTCOME in o.get("data", {})]
        kind, asserted, message = outcome or ("", False, "")
        fault = ""
        if outcome is None:
            fault = "passes; it must fail until it is filled in"
        elif not asserted:
            fault = f"raises {kind}: {message}; its check must refuse it by an AssertionError"
        elif not message.strip():
            fault = "fails without a message; say what is missing"
        if fault:
            wrong.append(f"exercise {task.label}: its stub, run as it is, {fault}")
        said[task.label] = message
    if wrong:
        raise BookError("\n".join(wrong))
    return said


def _code_cells_of_solutions(notebook: NotebookNode) -> dict[str, int]:
    """How many code cells stand in the solution of each label. A solution written otherwise has none."""
    count: dict[str, int] = {}
    inside = None
    for cell in notebook.cells:
        if cell.cell_type == "code" and inside is not None:
            count[inside] += 1
        for block in blocks(cell.source) if cell.cell_type == "markdown" else ():
            if block.kind in ("solution", "solution-start"):
                count[block.title] = 0
            if block.kind == "solution-start":
                inside = block.title
            elif block.kind == "solution-end":
                inside = None
    return count

"""What the text says came out, as conditions on the numbers: `chapters/verdicts.toml`.

Each entry says where a statement stands, what it says, and when it holds, in terms of what chapters glue and
records hold (the names of the claims page: ``c04.frr_inside``, ``r10_ablation['groups=3'].nmse``):

    [[verdict]]
    where = "claim 2"
    says = "Recovery is nearly whole inside the band and fails far above it."
    holds = "c04.frr_inside > 0.9 and c04.frr_far < 0.2"

So a statement fails with its numbers, on whatever processor they were made.
"""

import tomllib
from dataclasses import dataclass
from typing import Any

from simpleeval import EvalWithCompoundTypes, InvalidExpression

from tools import claims
from tools.layout import Book, BookError

FILE = "verdicts.toml"
FUNCTIONS = {f.__name__: f for f in (abs, all, any, float, len, max, min, round, sorted, sum)}
# what a condition raises that is not one, or asks for what is not there
WRONG = (ArithmeticError, AttributeError, LookupError, SyntaxError, TypeError, ValueError)


@dataclass(frozen=True)
class Verdict:
    """A statement of the text. where: "chapter 4" or "claim 2". says: it in words. holds: an expression."""

    where: str
    says: str
    holds: str

    def stands(self, numbers: dict[str, Any]) -> bool:
        """Return whether it holds for these numbers."""
        evaluator = EvalWithCompoundTypes(functions=FUNCTIONS, names=numbers)
        try:
            return bool(evaluator.eval(f"({self.holds})"))
        except (*WRONG, InvalidExpression) as error:
            raise BookError(f"{FILE}, {self.where}, {self.holds!r}: {error}") from error


def read(book: Book) -> list[Verdict]:
    """Return the statements of a book; none where it has no such file."""
    path = book.root / "chapters" / FILE
    if not path.is_file():
        return []
    try:
        return [Verdict(**entry) for entry in tomllib.loads(path.read_text("utf8")).get("verdict", [])]
    except (TypeError, tomllib.TOMLDecodeError) as error:
        raise BookError(f"{FILE}: {error}; an entry has where, says and holds") from error


def fallen(book: Book, numbers_of: Book | None = None) -> list[Verdict]:
    """Return the statements that do not hold, for the committed notebooks or for those of a copy.

    Of a copy that has not executed all chapters, only statements on those that it has are looked at.
    """
    numbers = claims.names(numbers_of or book)
    missing = {f"c{source.name[:2]}." for source in book.sources() if f"c{source.name[:2]}" not in numbers}
    shown = [verdict for verdict in read(book) if not any(name in verdict.holds for name in missing)]
    return [verdict for verdict in shown if not verdict.stands(numbers)]

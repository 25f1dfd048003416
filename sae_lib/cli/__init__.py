"""The command line: ``sae harvest``, ``sae train``, ``sae evaluate``, ``sae dashboard``."""

import io
import sys

import typer

from sae_lib import distributed
from sae_lib.cli.dashboard import dashboard
from sae_lib.cli.evaluate import evaluate
from sae_lib.cli.harvest import harvest
from sae_lib.cli.train import train
from sae_lib.distributed import LostProcessError
from sae_lib.training import NonFiniteLossError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Sparse autoencoders by bias adaptation: harvest activations, train, evaluate, read.",
)
for command in (harvest, train, evaluate, dashboard):
    app.command()(command)


def main() -> None:
    """Entry point of ``sae``: errors a user can mend are one line on standard error, exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        # a Windows pipe may know no λ
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except (ValueError, OSError, ImportError, NonFiniteLossError, LostProcessError) as error:
        typer.echo(f"sae: error{distributed.place()}: {error}", err=True)
        sys.exit(2)

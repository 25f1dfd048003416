"""Runs ``python -m sae_experiments.evidence``."""

from sae_experiments.evidence.command import main

if __name__ == "__main__":
    main()

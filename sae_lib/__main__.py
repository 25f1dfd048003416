"""``python -m sae_lib`` is ``sae``; ``torchrun -m sae_lib`` is ``sae`` on several processes."""

from sae_lib.cli import main

if __name__ == "__main__":
    main()

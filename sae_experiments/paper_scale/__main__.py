"""Runs ``python -m sae_experiments.paper_scale``."""

from sae_experiments.paper_scale.run import main

if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt as interrupt:
        raise SystemExit(f"{str(interrupt) or 'stopped'}; the same command resumes") from interrupt
    except ValueError as error:
        raise SystemExit(str(error)) from error

"""Large runs on the language model, for chapters 10 to 13: trained, measured and recorded one by one.

    python -m sae_experiments.evidence --list            # every run: on record, in progress or to do
    python -m sae_experiments.evidence search frontier   # or some stages, in this order
    python -m sae_experiments.evidence search --first-rows 1000000   # while the harvest goes on

    search       rates and more, 12 runs each of GBA, TopK and BatchTopK; 4,096 latents, 1 million rows
    frontier     the same three with what the search found, 8,192 latents, 12 million rows, three seeds
    baselines    BA, Matryoshka, JumpReLU and L1 there, one seed
    levels       GBA and TopK there, with 16, 64 and 128 active latents
    size         GBA, TopK and BatchTopK over 1,024 to 8,192 latents and 100,000 to 12 million rows
    places       the same at other layers and in other text, at the size of the search

Stores come from ``sae_experiments.stores``. Each row goes into book/records/10_evidence.json when its run
ends, and its autoencoder stays in runs/evidence. Runs on record are not made again. Ctrl-C or SIGTERM stops
after a checkpoint, and the same command goes on; several processes may share the work.

The rules. Batches have 1,024 rows; 32 latents are to be active unless a stage says otherwise. GBA's targets
fall from HTF to a hundredth of it. HTF, and the knobs of the baselines, are searched for every setting: at
most six trainings on a seed that is used for nothing else, with a twelfth of the run's rows, but at least
150,000 or all of them; their L0, error and time are in the row. The best of the search is the run with the
least FVU at the wanted L0, along the power law that GBA's own trials show. JumpReLU and L1 have the rate of
chapter 10's search, BA that of GBA, Matryoshka that of BatchTopK.
"""


def __getattr__(name: str) -> object:
    # the command imports this module for its docstring
    if name in ("main", "parser"):
        from sae_experiments.evidence import command

        return getattr(command, name)
    raise AttributeError(f"{__name__} has no {name!r}")

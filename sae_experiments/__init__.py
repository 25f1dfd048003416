"""The book's own experiments, beside the library that they use: written once for chapters and records.

On a language model: ``testbed`` has model, texts, layers and methods; ``latent_reading`` sets latents beside
the tokens they fire on; ``token_classes``, ``concepts`` and ``probes`` say what a latent may stand for and
``concept_search`` which one does; ``null_models`` is the same search on models with random weights.
``synthsaebench`` is the published benchmark. ``records`` makes the longer runs that pages show, a command for
each chapter; ``paper_scale`` is the paper's own run.
"""

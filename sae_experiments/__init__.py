"""The book's own experiments, which use the library; written once for chapters and records.

On a language model: ``testbed`` has model, texts, layers and methods; ``latent_reading`` sets latents beside
the tokens they fire on; ``token_classes``, ``concepts`` and ``probes`` define what a latent may stand for;
``concept_search`` finds one that does; ``null_models`` repeats the search on models with random weights.
``synthsaebench`` is the published benchmark. ``records`` makes the longer runs that pages show;
``stores`` and ``evidence`` make the large ones on the language model; ``paper_scale`` is the paper's own run.
"""

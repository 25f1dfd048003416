"""What Part IV of the book does on a language model, written once for its chapters and for ``benchmarks``.

``testbed``: model, texts, layers and methods. ``reading``: latents beside the tokens they fire on.
``token_classes``, ``concepts``: what a latent may stand for. ``concept_search``: which one does.
``model_nulls``: the same search on models with random weights.
"""

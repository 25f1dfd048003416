"""The paper's run on a language model: what it needs, and the run itself."""

"""The paper's run on a language model: its cost, and the run itself."""

"""The commands that make the records of `book/results`, too long for a page's own run."""

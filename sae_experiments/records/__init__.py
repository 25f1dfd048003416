"""The commands that make the records of `book/records`, too long for a page's own run."""

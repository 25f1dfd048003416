"""The commands that make the records in ``book/records`` of runs too long for a page."""

"""Records: results of runs too long for a page, kept as small JSON files with their provenance."""

from sae_lib.records.record import FORMAT, Record, RecordError, read, write

__all__ = ["FORMAT", "Record", "RecordError", "read", "write"]

"""Records: results too long for a page's own run, kept as small JSON files with their provenance."""

from sae_lib.records.record import FORMAT, Record, RecordError, read, write

__all__ = ["FORMAT", "Record", "RecordError", "read", "write"]

"""Data sets: registration, metadata and the mapper."""

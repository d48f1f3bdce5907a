"""Everything about the files of the original program, mapillary/seamseg: weights, settings, data sets, raw outputs."""

from . import raw  # noqa: F401  (registers the output format "raw")

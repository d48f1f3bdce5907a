"""Preparing data sets: every format becomes COCO panoptic (photos, id PNGs, one json)."""

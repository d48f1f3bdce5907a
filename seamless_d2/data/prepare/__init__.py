"""Preparing data sets: every format becomes COCO panoptic (images, id PNGs, one json)."""

"""Exported models: from a checkpoint to ONNX, OpenVINO and .pt2 files, and how these are run."""

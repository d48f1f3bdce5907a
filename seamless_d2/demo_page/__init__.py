"""The local demo page (the extra "page": Gradio)."""

from .page import build_app, serve

__all__ = ["build_app", "serve"]

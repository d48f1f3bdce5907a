"""The local demo page (the extra "page": Gradio)."""

from .page import DemoPage, serve

__all__ = ["DemoPage", "serve"]

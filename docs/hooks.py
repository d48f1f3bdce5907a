"""MkDocs: pages name images of the repository as GitHub shows them (../.github/…); the site has copies in images/."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

IMAGES = Path(__file__).resolve().parent.parent / ".github"


def on_files(files: Files, config: Any) -> Files:
    for image in sorted([*IMAGES.glob("*.jpg"), *IMAGES.glob("*.svg")]):
        files.append(File.generated(config, f"images/{image.name}", abs_src_path=str(image)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace("../.github/", "images/")

"""MkDocs: pages name files of the repository as GitHub shows them (../.github/…); the site has copies of its own."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent


def on_files(files: Files, config: Any) -> Files:
    for image in sorted([*(ROOT / ".github").glob("*.jpg"), *(ROOT / ".github").glob("*.svg")]):
        files.append(File.generated(config, f"images/{image.name}", abs_src_path=str(image)))
    recipes = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("(docs/", "(")
    files.append(File.generated(config, "contributing.md", content=recipes))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace("../.github/", "images/").replace("(../CONTRIBUTING.md)", "(contributing.md)")

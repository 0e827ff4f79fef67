"""MkDocs hooks: pages of the repository that lie outside `docs/` are part of the site, under their own paths.

Links in every page are those of the repository, so that they also work where the repository is browsed.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
OUTSIDE = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "LICENSE", "experiments/*/*.md")
OUTSIDE += ("experiments/*/*.png", "experiments/*/*.yaml", "experiments/*/*.json", "experiments/*/*.ipynb")
LINK = re.compile(r"(\]\()([^)\s]+)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages and pictures outside `docs/`."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            source = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, source, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Makes links between files of the repository links between pages of the site."""
    source = page.file.src_uri
    outside = not Path(page.file.abs_src_path).is_relative_to(config.docs_dir)
    return LINK.sub(lambda match: match[1] + site_link(match[2], source, outside), markdown)


def site_link(target: str, page: str, outside: bool) -> str:
    """A link of a page as the site needs it; `docs/` is the root of the site, as the repository's own is."""
    if re.match(r"[a-z]+:|#", target):
        return target
    path, mark, anchor = target.partition("#")
    folder = posixpath.dirname(page if outside else f"docs/{page}")
    in_repository = posixpath.normpath(posixpath.join(folder, path))
    on_site = in_repository.removeprefix("docs/")
    return posixpath.relpath(on_site, posixpath.dirname(page) or ".") + mark + anchor

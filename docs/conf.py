"""Sphinx configuration: the pages of this folder, the API from docstrings, the command line from its own help."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

project = "Subspace"
project_copyright = "the Subspace developers"
version = release = importlib.metadata.version("semantic-subspace-matching")

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

html_theme = "furo"
html_title = "Subspace"
html_static_path: list[str] = []
exclude_patterns = ["_build"]
nitpicky = False


def write_command_line(_: Any) -> None:
    """Write the reference of the command line from the help of the command itself."""
    shown = subprocess.run(
        [sys.executable, "-m", "typer", "jobs.cli", "utils", "docs", "--name", "subspace", "--title", "Verbs"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    shown = re.sub(r"^ *\[dim\]\$\[/dim\] (.*)$", r"`\1`", shown, flags=re.MULTILINE)
    shown = re.sub(r"\[/?(bold|dim)\]", "", shown)
    target = HERE / "reference" / "verbs.md"
    target.parent.mkdir(exist_ok=True)
    if not target.is_file() or target.read_text(encoding="utf-8") != shown:
        target.write_text(shown, encoding="utf-8")


def setup(app: Any) -> None:
    """Connect what runs before the pages are read."""
    app.connect("builder-inited", write_command_line)

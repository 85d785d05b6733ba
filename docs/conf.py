"""The documentation site: `make docs`. The reference is generated from the code each time, never typed."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import generate

project = "skyheed"
author = "The skyheed developers"
copyright = "2026, The skyheed developers"
release = version = version_of("skyheed")
extensions = ["myst_nb", "sphinx_click", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = [".jupyter_cache", "_build", "jupyter_execute"]
html_theme = "furo"
html_title = f"skyheed {release}"
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
autodoc_typehints = "description"
autodoc_member_order = "bysource"
# numpy's and torch's own documentation is not loaded: the build needs no network
nitpicky = False
suppress_warnings = ["misc.highlighting_failure"]

generate.write(Path(__file__).parent / "reference")

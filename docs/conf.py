"""Settings of the documentation site: `make docs` builds it into build/docs.

The source folder is the repository, so that README.md and the files in docs/ hold the same links on GitHub and here.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

from calor_hf import __version__  # noqa: E402  (found by the line above)

project = "calor_hf"
author = "calor_hf contributors"
copyright = author
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "registry_pages",
    "repository_links",
]
root_doc = "README"
# A page that another branch or release has and this one lacks is no error: what is there is taken.
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "SKILL.md",
    "docs/*.md",
    "docs/*.ipynb",
    "docs/results/*.md",
    "docs/reference/**",
    "examples/**/*.md",
]
exclude_patterns = ["build", "outputs", "runs", "tests", ".*", "**/.ipynb_checkpoints"]
nitpicky = False  # docstrings name classes of transformers and torch, which have no page here
default_role = "code"  # `one backtick` is code in our docstrings, too
highlight_language = "text"  # blocks without a language are commands

html_theme = "furo"
html_title = f"calor_hf {release}"
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "index.html"}  # leads to README.html
html_copy_source = False

myst_heading_anchors = 4  # `page.md#a-heading`, as GitHub has them

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_output_stderr = "warn"  # a warning in the notebook is an error of the build; bars are left out
os.environ.update(TQDM_DISABLE="1", PYTHONWARNINGS="ignore:IProgress not found")
nb_execution_timeout = 900  # seconds a cell; a busy machine takes its time

autodoc_member_order = "bysource"
autodoc_default_options = {"show-inheritance": True}
add_module_names = False
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Source", "notes_style")]

linkcheck_anchors = False  # GitHub makes its anchors in the browser

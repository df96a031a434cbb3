"""Sphinx configuration: `sphinx-build -W -n docs docs/_build`, with the extra `docs` installed."""

import os
import sys
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

from gallery import last_figure

import sklearn_cryoem

project = "sklearn-cryoem"
author = "The sklearn-cryoem developers"
copyright = f"2026, {author}"
version = release = sklearn_cryoem.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
    "command_line",
    "equations",
    "mathml",
]
exclude_patterns = [
    "_build",
    "development/decisions/template.md",
    "auto_examples/*.ipynb",
    "auto_examples/*.py",
]
templates_path = ["_templates"]
default_role = "literal"  # docstrings name parameters in single backticks
nitpicky = True
# Types of numpydoc docstrings are words ("ndarray of shape (n_images,)"); intersphinx would need a network.
nitpick_ignore_regex = [("py:(class|obj|data|exc|meth)", r"(?!sklearn_cryoem\.).*"), ("py:.*", r".*\._.*")]

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "none"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_preprocess_types = False

myst_enable_extensions = ["dollarmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
suppress_warnings = ["config.cache"]  # a function among the settings of the gallery

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"plot_",
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("sklearn_cryoem",),
    "image_scrapers": ("matplotlib", last_figure),
    "capture_repr": (),
    "show_memory": False,
    "min_reported_time": 5,
    "write_computation_times": False,
    "plot_gallery": "True",
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "within_subsection_order": "gallery.in_order",
    "download_all_examples": False,
    "show_signature": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "sklearn-cryoem"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "sklearn-cryoem"},
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "show_prev_next": True,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "tango",
}
_ALONE = ("getting_started", "tutorial", "math", "accuracy", "architecture", "changelog", "command_line")
html_sidebars: dict[str, list[str]] = {page: [] for page in _ALONE}

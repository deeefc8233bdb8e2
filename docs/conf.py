"""The site of the documentation: `make docs` builds it into build/docs, and every warning is an error."""

from importlib import metadata

import shoal

project, author, copyright = "Shoal", "the Shoal authors", "the Shoal authors, Apache-2.0"
release = metadata.version("shoal")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme, html_title = "furo", f"Shoal {release}"
html_extra_path = ["../build/site"]  # the reports that `make gallery` makes
html_static_path, html_css_files = ["static"], ["gallery.css"]

default_role = "code"  # a name between single backticks in a docstring
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_include_init_with_doc = False
maximum_signature_line_length = 88

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # `make tutorials` runs them and keeps their outputs; a test says when these are stale


def check_public_names(app, env):
    """Warn of every public name that no page documents; a warning is an error."""
    from sphinx.util import logging

    documented = env.get_domain("py").objects
    for name in shoal.__all__:
        if f"shoal.{name}" not in documented:
            logging.getLogger(__name__).warning("the public name shoal.%s is on no page: add it to docs/api.md", name)


def setup(app):
    """Connect the check."""
    app.connect("env-check-consistency", check_public_names)

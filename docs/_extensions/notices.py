"""One entry for each warning about particle data, from the registry that the warnings come from."""

import re

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Notices(SphinxDirective):
    """``{notices}``: name, meaning and remedy of every notice, each with a target of its name."""

    def run(self):
        """Make a section of each."""
        from sklearn_cryoem._core.notices import NOTICES

        return [self.entry(notice) for notice in NOTICES.values()]

    def entry(self, notice):
        """Section of one notice."""
        section = nodes.section(ids=[notice.name], names=[notice.name])
        section += nodes.title("", "", nodes.literal("", notice.name))
        section += nodes.paragraph("", "", *marked(notice.meaning))
        section += nodes.paragraph("", "", nodes.strong("", "Do: "), *marked(notice.remedy))
        return section


def marked(text):
    """Text with options and parameters as literals."""
    parts = re.split(r"(--[\w-]+|\b\w+=\w*)", text)
    return [nodes.literal("", part) if index % 2 else nodes.Text(part) for index, part in enumerate(parts)]


def setup(app):
    """Register the directive."""
    app.add_directive("notices", Notices)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

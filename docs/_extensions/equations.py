"""Equation numbers of docs/math.md become targets, and every `Eq. (3.1)` a link to one."""

import re

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

DEFINITION = re.compile(r"^\*\*\((\d+\.\d+)\)\*\*", flags=re.MULTILINE)
CITATION = re.compile(r"\((\d+\.\d+)\)")
PAGE = "math"


def mark(app, docname, source):
    """Give each bold number at the start of a line of math.md an anchor: (3.1) is #eq-3-1."""
    if docname == PAGE:
        app.env.equation_numbers = set(DEFINITION.findall(source[0]))
        source[0] = DEFINITION.sub(lambda match: f"[**({match[1]})**]{{#{anchor(match[1])}}}", source[0])


def anchor(number):
    """Identifier of an equation in the page."""
    return "eq-" + number.replace(".", "-")


class LinkEquations(SphinxPostTransform):
    """Turn numbers in parentheses into links, in running text alone."""

    default_priority = 50
    formats = ("html",)

    def run(self, **kwargs):
        """Replace them in this page."""
        known = getattr(self.env, "equation_numbers", set())
        here = self.env.docname
        for text in list(self.document.findall(nodes.Text)):
            if isinstance(text.parent, nodes.literal | nodes.reference | nodes.strong | nodes.literal_block):
                continue
            if here != PAGE and "Eq" not in text.astext():
                continue
            pieces, end = [], 0
            for match in CITATION.finditer(text.astext()):
                if match[1] in known:
                    pieces += [nodes.Text(text.astext()[end : match.start()]), self.link(here, match[1])]
                    end = match.end()
            if pieces:
                text.parent.replace(text, [*pieces, nodes.Text(text.astext()[end:])])

    def link(self, here, number):
        """Reference to an equation."""
        page = "" if here == PAGE else self.app.builder.get_relative_uri(here, PAGE)
        return nodes.reference("", f"({number})", refuri=f"{page}#{anchor(number)}", internal=True)


def setup(app):
    """Register both."""
    app.connect("source-read", mark)
    app.add_post_transform(LinkEquations)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}

r"""Formulas as MathML, which browsers draw themselves: no script, no network, no LaTeX."""

import re

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml


def inline(self, node):
    """Formula in a line of text."""
    self.body.append(tex2mathml(spaced(node.astext()), as_block=False))
    raise SkipNode


def displayed(self, node):
    """Formula in a line of its own."""
    self.body.append(f'<div class="math">{tex2mathml(spaced(node.astext()), as_block=True)}</div>')
    raise SkipNode


def spaced(formula):
    r"""A thin space after names of functions without parentheses, as TeX has it: \log p."""
    return re.sub(r"\\(log|sin|cos|arcsin|exp|mathrm\{E\}) (?=[\w\\])", r"\\\1\\, ", formula)


def setup(app):
    """Tell Sphinx how formulas become HTML."""
    app.add_html_math_renderer("mathml", (inline, None), (displayed, None))
    app.config.html_math_renderer = "mathml"
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

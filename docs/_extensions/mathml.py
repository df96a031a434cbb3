r"""Formulas as MathML, which browsers draw themselves: no script, no network, no LaTeX."""

from docutils.utils.math.latex2mathml import tex2mathml


def inline(self, node):
    """Formula in a line of text."""
    self.body.append(tex2mathml(node.astext(), as_block=False))
    _skip()


def displayed(self, node):
    """Formula in a line of its own."""
    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    _skip()


def _skip():
    from docutils.nodes import SkipNode

    raise SkipNode


def setup(app):
    """Tell Sphinx how formulas become HTML."""
    app.add_html_math_renderer("mathml", (inline, None), (displayed, None))
    app.config.html_math_renderer = "mathml"
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

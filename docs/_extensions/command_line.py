"""The help of a command, as the command itself prints it."""

import os

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

os.environ["COLUMNS"] = "100"


class CommandHelp(SphinxDirective):
    """``{command-help} classify``: what ``sklearn-cryoem classify --help`` says."""

    required_arguments = 1

    def run(self):
        """Make a literal block of it."""
        from sklearn_cryoem.cli.main import build_parser

        text = build_parser().commands[self.arguments[0]].format_help()
        return [nodes.literal_block(text, text, language="text")]


def setup(app):
    """Register the directive."""
    app.add_directive("command-help", CommandHelp)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

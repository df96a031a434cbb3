"""Figures of the package live outside pyplot: the gallery takes the one that a cell ends with."""

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

ORDER = ("ribosome_views", "view_distances", "manifold_atlas", "rings_in_a_class", "deep_clustering",
         "realignment", "streaming", "choose_model")  # fmt: skip


def in_order(filename):
    """Place of an example in the gallery: as above, others behind."""
    name = filename.removeprefix("plot_").removesuffix(".py")
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def last_figure(block, block_vars, gallery_conf):
    """Save the figure that is the last value of a cell, as a notebook would show it."""
    value = block_vars["example_globals"].get("___")
    if block[0] != "code" or not isinstance(value, Figure):
        return ""
    path = next(iter(block_vars["image_path_iterator"]))
    value.savefig(path, format="png", dpi=100, bbox_inches="tight")
    block_vars["example_globals"]["___"] = None  # or the next cell without a value would show it again
    return figure_rst([path], gallery_conf["src_dir"])

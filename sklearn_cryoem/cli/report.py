"""`sklearn-cryoem report`: a finished run as one HTML page and as pictures."""

import json
import secrets
import shlex
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from sklearn_cryoem.cli.console import CommandError, with_options
from sklearn_cryoem.cli.options import IMAGES_DIR, add_options, new_command
from sklearn_cryoem.cli.results import AVERAGES, QUALITY

PAGE, SELECTION, MONTAGE = "report.html", "selection.json", "montage.png"
_LONGEST_SELECTION = 2**20  # bytes
_REPORT_EPILOG = """\
The page is one file that needs no network. Classes selected in it are saved as a file, which
sklearn-cryoem select turns into a subset of the particles. With --serve that file lies beside the run.
"""


def add_report(commands):
    """Add `report` to the parser."""
    parser = new_command(
        commands, "report", report,
        summary="show the results of a run as one HTML page, to select classes in",
        description="Make one self-contained HTML page of a finished run: class gallery, manifold atlas, "
        "convergence, class tree, parameters and warnings.",
        epilog=_REPORT_EPILOG,
    )  # fmt: skip
    parser.add_argument("folder", metavar="DIR", type=Path, help="the --output of a finished run")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help=f"the page (default: {PAGE} in DIR, replaced)"
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it is there")
    parser.add_argument("--title", metavar="TEXT", help="title of the page (default: the name of DIR)")
    parser.add_argument(
        "--serve",
        action="store_true",
        help="show the page to browsers of this computer alone until Ctrl-C; its selection is saved in DIR",
    )
    parser.add_argument(
        "--png",
        metavar="FOLDER",
        type=Path,
        help="also write a PNG file of each class with particles, and one of all, montage.png",
    )
    parser.add_argument(
        "--png-width",
        metavar="PIXELS",
        type=int,
        help="width of montage.png (default: 300 pixels to an inch)",
    )
    add_options(parser, [IMAGES_DIR])
    parser.add_argument(
        "--no-particles", action="store_true", help="read no images: a smaller page, without examples"
    )
    parser.add_argument(
        "--map", metavar="FILE", type=Path,
        help="compare each average with projections of this map (.mrc) in all turns and mirrored; the "
        "correlation goes into quality.csv as map_correlation, for the page and for select",
    )  # fmt: skip


def report(options, console):
    """Make the page and say where it is."""
    if not options.folder.is_dir():
        raise CommandError(f"there is no folder {options.folder}. Give the --output of a finished run.")
    from sklearn_cryoem._core.files import try_to_write
    from sklearn_cryoem.report import report as make_report

    path = options.output or options.folder / PAGE
    overwrite = options.force or options.output is None
    try_to_write(path, overwrite=overwrite)
    if options.map is not None:
        _compare_with_map(options.folder, options.map)
    page = make_report(
        options.folder,
        images_dir=options.images_dir,
        examples=not options.no_particles,
        title=options.title,
    )
    page.save(path, overwrite=overwrite)
    for warning in page.warnings:
        console.warn(with_options(warning, options))
    if options.png is not None:
        console.say(f"{options.png}: {_write_pngs(options)} classes and {MONTAGE}")
    size, run = f"{len(page.html) / 1e6:.1f} MB", shlex.quote(str(options.folder))
    if not options.serve:
        console.say(f"{path} ({size}): open it in a browser, select classes, save the selection")
        console.say("the page then shows the sklearn-cryoem select command for it")
        return
    chosen = options.folder / SELECTION
    with server_of(page.html, chosen) as server:
        console.data(f"{server.address} ({size}): select classes there, in a browser; Ctrl-C ends this")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    console.say(f"then: sklearn-cryoem select {run} --selection {shlex.quote(str(chosen))} -o good.star")


def server_of(html, selection):
    """A server of one page for the browsers of this computer; what they save becomes the file `selection`.

    Its address holds a secret, so that no other page of the browser can save anything.
    """
    from sklearn_cryoem.io import write_selection

    place = f"/{secrets.token_urlsafe(12)}/"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.path == place
            self.answer(200 if known else 404, html if known else "not here", "text/html; charset=utf-8")

        def do_POST(self):
            length = int(self.headers.get("Content-Length", 0))
            if self.path != place + SELECTION or length > _LONGEST_SELECTION:
                return self.answer(404, "not here")
            try:
                content = json.loads(self.rfile.read(length))
                write_selection(selection, content["classes"], source=content.get("source"), overwrite=True)
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                return self.answer(400, f"not saved: {error}")
            self.answer(200, shlex.quote(str(selection.resolve())))

        def answer(self, status, text, kind="text/plain; charset=utf-8"):
            body = text.encode("utf-8", "replace")
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass  # a line for each request helps nobody

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.address = f"http://127.0.0.1:{server.server_port}{place}"
    return server


def _write_pngs(options):
    """Write a picture of each class that holds particles, and one of all; return how many."""
    import pandas as pd
    from PIL import Image

    from sklearn_cryoem._core.files import atomic_path
    from sklearn_cryoem.io import read_mrc
    from sklearn_cryoem.particles.display import robust_grey, to_bytes
    from sklearn_cryoem.plotting import plot_class_averages

    averages, pixel_size = read_mrc(options.folder / AVERAGES)
    quality = pd.read_csv(options.folder / QUALITY)
    filled = [k for k, size in enumerate(quality["size"]) if size]
    options.png.mkdir(parents=True, exist_ok=True)
    for k, grey in zip(filled, to_bytes(robust_grey(averages[filled])), strict=True):
        with atomic_path(options.png / f"class_{k + 1:04d}.png", overwrite=True) as path:
            Image.fromarray(grey).save(path, "PNG")
    figure = plot_class_averages(averages, quality=quality, numbers=True, pixel_size=pixel_size)
    dpi = 300 if options.png_width is None else options.png_width / figure.get_figwidth()
    with atomic_path(options.png / MONTAGE, overwrite=True) as path:
        figure.savefig(path, format="png", dpi=dpi)
    return len(filled)


def _compare_with_map(folder, path):
    """Add the correlation of averages with a known map to the table of quality of a run."""
    import pandas as pd

    from sklearn_cryoem._core.files import atomic_path
    from sklearn_cryoem.datasets import load_volume
    from sklearn_cryoem.io import read_mrc
    from sklearn_cryoem.quality import map_correlation

    averages, pixel_size = read_mrc(folder / AVERAGES)
    table = pd.read_csv(folder / QUALITY)
    table["map_correlation"] = map_correlation(averages, load_volume(path), pixel_size)
    with atomic_path(folder / QUALITY, overwrite=True) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")

"""`sklearn-cryoem report`: a finished run as one HTML page and as pictures."""

import itertools
import json
import re
import secrets
import shlex
import subprocess
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from sklearn_cryoem.cli.console import CommandError, with_options
from sklearn_cryoem.cli.options import IMAGES_DIR, add_options, new_command
from sklearn_cryoem.cli.results import AVERAGES, QUALITY
from sklearn_cryoem.cli.run_folder import SUMMARY, labelled_particles, read_summary

PAGE, SELECTION, MONTAGE = "report.html", "selection.json", "montage.png"
_LONGEST_SELECTION, _SHOWN_LOG = 2**20, 2**15  # bytes
# What a served page may ask for, of the run itself and of the folders that commands made in it.
_ASKED = re.compile(r"((?:(?:deep|clean)_\d+/)*)(|log|stop|selection\.json|run/(?:select|deep|clean))")
# Options of a run that its next command does not take over; `deep` chooses its numbers of classes itself.
_OWN = {"particles", "output", "passthrough", "images_dir"}
_OWN_OF_DEEP = _OWN | {"classes", "align_classes", "align_references"}
_REPORT_EPILOG = """\
The page is one file that needs no network. Classes selected in it are saved as a file, which
sklearn-cryoem select turns into a subset of the particles. With --serve that file lies beside the run, and
the page runs select, deep or clean with it.
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
        help="show the page to browsers of this computer alone until Ctrl-C; its selection is saved in DIR, "
        "and commands run with it",
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
    with server_of(page.html, options.folder) as server:
        console.data(f"{server.address} ({size}): select classes there, in a browser; Ctrl-C ends this")
        with suppress(KeyboardInterrupt):
            try:
                server.serve_forever()
            finally:  # terminated, too
                server.job.stop()
    console.say(f"then: sklearn-cryoem select {run} --selection {shlex.quote(str(chosen))} -o good.star")


def server_of(html, folder):
    """A server of the page of a run for browsers of this computer, which save selections and run commands.

    Its address holds a secret, so that no other page of the browser can do so. What it can run is fixed but
    for the folder: `commands_of`.
    """
    from sklearn_cryoem.io import write_selection

    place, job = f"/{secrets.token_urlsafe(12)}/", Job()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            inside, asked = self.asked()
            page = inside / PAGE if inside else None
            if asked == "log":
                self.answer(200, json.dumps(job.state()), "application/json")
            elif asked == "" and inside == folder:
                self.answer(200, html, "text/html; charset=utf-8")
            elif asked == "" and page.is_file():
                self.answer(200, page.read_text(encoding="utf-8"), "text/html; charset=utf-8")
            else:
                self.answer(404, "not here")

        def do_POST(self):
            inside, asked = self.asked()
            length = int(self.headers.get("Content-Length", 0))
            if not asked or asked == "log" or length > _LONGEST_SELECTION:
                self.answer(404, "not here")
            elif asked == SELECTION:
                self.save(inside / SELECTION, length)
            elif asked == "stop":
                job.stop()
                self.answer(200, "stopped")
            elif job.start(inside, asked.removeprefix("run/")):
                self.answer(200, "started")
            else:
                self.answer(409, "Another command runs. Wait until it ends, or stop it.")

        def asked(self):
            """The folder and what is asked for in it; None and None without the secret."""
            found = _ASKED.fullmatch(self.path.removeprefix(place)) if self.path.startswith(place) else None
            return (folder / found[1], found[2]) if found else (None, None)

        def save(self, selection, length):
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
            self.send_header("Referrer-Policy", "no-referrer")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass  # a line for each request helps nobody

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.address, server.job = f"http://127.0.0.1:{server.server_port}{place}", job
    return server


class Job:
    """One command at a time, in a process of its own; what it prints goes into a file of the run."""

    def __init__(self):
        self._lock, self._process = threading.Lock(), None
        self._command, self._outcome, self._log, self._report, self._why = "", "", None, "", ""

    def start(self, folder, name):
        """Run a command with the selection saved in the folder of a run; False while another one runs."""
        with self._lock:
            if self._outcome == "running":
                return False
            self._command, self._outcome, self._process = name, "running", None
            self._log, self._report, self._why = folder / f"{name}.log", "", ""
        threading.Thread(target=self._run, args=(folder, name), daemon=True).start()
        return True

    def _run(self, folder, name):
        outcome, made, why = "failed", None, ""
        try:
            with self._log.open("wb") as log:
                commands, made = commands_of(folder, name)
                if all(self._ends_well(list(map(str, words)), log) for words in commands):
                    outcome = "done"
        except Exception as error:  # or the page would wait for ever; the log itself may not be written
            why = f"error: {error}\n"
        with self._lock:
            self._outcome = outcome if self._outcome == "running" else self._outcome
            self._why = why
            self._report = f"{made.name}/" if made is not None and self._outcome == "done" else ""

    def _ends_well(self, words, log):
        with self._lock:
            if self._outcome == "stopped":
                return False
            log.write(f"$ sklearn-cryoem {shlex.join(words)}\n".encode("utf-8", "backslashreplace"))
            log.flush()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sklearn_cryoem.cli", *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        return self._process.wait() == 0

    def stop(self):
        """End what runs; files that it has written are whole."""
        with self._lock:
            if self._outcome == "running":
                self._outcome = "stopped"
                if self._process is not None:
                    self._process.terminate()

    def state(self):
        """The command, how far it is, the end of what it printed, and where the report of its folder is."""
        with self._lock:
            state = {"command": self._command, "outcome": self._outcome, "report": self._report, "log": ""}
            why = self._why
        with suppress(OSError, AttributeError):
            state["log"] = self._log.read_bytes()[-_SHOWN_LOG:].decode("utf-8", "replace")
        state["log"] += why
        return state


def commands_of(folder, name):
    """The words of the commands that select, deep or clean is from a page, and the folder that they fill.

    Options are those of the run. The particles are those of the selection that was saved in its folder, and
    results go to new folders in it.
    """
    from sklearn_cryoem.cli.main import build_parser, words_of

    particles = folder / f"selected{labelled_particles(folder).suffix}"
    chosen = ["select", folder, "--selection", folder / SELECTION, "-o", particles, "--force"]
    if name == "select":
        return [chosen], None
    made = next(path for n in itertools.count(1) if not (path := folder / f"{name}_{n}").exists())
    usual = vars(build_parser().parse_args([name]))
    used = read_summary(folder).get("options", {})
    taken = [key for key in used if key in usual and key not in (_OWN_OF_DEEP if name == "deep" else _OWN)]
    if particles.suffix == ".cs":  # the names in a STAR file of select need no folder
        taken.append("images_dir")
    more = [
        word
        for key in taken
        if used.get(key) not in (None, usual[key])
        for word in words_of(key, used[key], usual[key], folder / SUMMARY)
    ]
    return [chosen, [name, particles, "-o", made, *more], ["report", made]], made


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

"""`sklearn-cryoem watch`: particles are aligned and classified as they appear."""

import copy
import time
from pathlib import Path

import numpy as np

import sklearn_cryoem as lib
from sklearn_cryoem.cli import options as opts
from sklearn_cryoem.cli import preflight
from sklearn_cryoem.cli.classify import make_aligner, make_clusterer
from sklearn_cryoem.cli.compare import names_of
from sklearn_cryoem.cli.console import CommandError, Interrupted, with_options
from sklearn_cryoem.cli.report import PAGE
from sklearn_cryoem.cli.results import LEFT_OUT, MODEL, Outcome, output_names, write
from sklearn_cryoem.cli.run_folder import SUMMARY, UNFINISHED, RunFolder

_FLAT_BATCHES, _FLAT_ERRORS = 2, 2.0  # batches in a row whose gain is no more than so many standard errors
_WATCHING = [
    ("batch", "--batch", "N", opts.count, 1000, "take particles when there are so many new ones"),
    ("every", "--every", "SECONDS", opts.positive, 30.0, "look at the files so often"),
    ("idle", "--idle", "SECONDS", opts.positive, None,
     "end when nothing has changed for so long, with what is left (default: Ctrl-C ends it)"),
]  # fmt: skip


def add_watch(commands):
    """Add `watch` to the parser."""
    parser = opts.new_command(commands, "watch", watch)
    parser.add_argument(
        "particles", metavar="PARTICLES", type=Path, nargs="?",
        help="a folder of STAR files, or a STAR file that grows (required)",
    )  # fmt: skip
    opts.add_run(parser, "particles", "output")
    opts.add_options(parser.add_argument_group("watching"), _WATCHING)
    reading = parser.add_argument_group("reading")
    opts.add_files(reading)
    opts.add_options(reading, opts.READING)
    opts.add_classification(parser)
    opts.add_machine(parser.add_argument_group("machine"))


def watch(options, console):
    """Classify particles as they appear in a folder, or in a file that grows.

    Align and cluster the particles of STAR files as these appear or grow, batch by batch (partial_fit of
    MAPAligner and SMLClusterer), and say when more would change nothing.

    A file is read when it has rested from one look to the next and is whole. A particle is told by the name
    of its image, and taken once. DIR holds what that of classify holds, of all particles so far, and the page
    of report; all of it is renewed after every batch. The same command goes on where it was interrupted or
    killed, with the model in DIR, whatever the options of the fits say.
    """
    if not options.particles.exists():
        raise CommandError(f"there is no {options.particles}. Give a folder of STAR files, or a STAR file.")
    if options.particles.resolve() == options.output.resolve():
        raise CommandError(
            f"{options.output} is the folder of the particles, too. Choose another --output: the STAR files "
            "of the results would be read as particles."
        )
    names = [*output_names(".star", align=not options.skip_align), PAGE, LEFT_OUT]
    known = _earlier_models(options.output / MODEL)
    with RunFolder(options.output, names, force=options.force or known is not None) as folder:
        preflight.check_machine(console)
        (folder / UNFINISHED).mkdir(exist_ok=True)  # killed from here on, the run goes on
        folder.force = True  # every batch replaces the files of the last
        kind = known[1].watched_["given"] if known else None
        run, inbox = _Run(options, folder, console, known), _Inbox(options, folder, console, kind)
        try:
            run.follow(inbox)
        except KeyboardInterrupt:
            raise Interrupted("interrupted. The same command goes on from here.") from None


def _earlier_models(path):
    """Aligner (or None) and clusterer of an earlier run in the folder; None where there was none."""
    if not path.exists():
        return None
    *before, last = lib.particles.classes.steps_of(lib.estimators.load_model(path))
    return (before[0] if before else None, last) if hasattr(last, "watched_") else None


class _Inbox:
    """The particles of all files that have rested since the last look and can be read."""

    def __init__(self, options, folder, console, kind):
        self._options, self._folder, self._console = options, folder, console
        self._kind = kind  # box and pixel size of what was learned from
        self._last, self._read, self._stacks, self._said = {}, {}, {}, {}  # of each file

    def look(self):
        """Read what is new and whole; return whether anything has changed, and all particles, or None."""
        given, changed = self._options.particles, False
        for path in sorted(given.glob("*.star")) if given.is_dir() else [given]:
            try:
                found = path.stat()
                stamp, last = (found.st_size, found.st_mtime_ns), self._last.get(path)
                self._last[path] = stamp
                changed |= stamp != last
                if stamp == last != self._read.get(path):
                    quiet = copy.copy(self._options)
                    quiet.particles, quiet.quiet = path, True
                    stack = preflight.read(quiet, self._folder, self._console)[0]
                    if self._kind not in (None, _kind_of(stack)):
                        raise ValueError(
                            f"its box and pixel size are {_kind_of(stack)}, and those of the particles that "
                            f"were learned from {self._kind}. Choose another --output for it."
                        )
                    others = [other for name, other in self._stacks.items() if name != path]
                    lib.particles.concatenate([*others[:1], stack])  # of one kind
                    self._stacks[path], self._read[path] = stack, stamp
                    changed |= self._said.pop(path, None) is not None
            except (ValueError, OSError) as error:  # tried again at every look: its images may follow
                said = f"{path} is left until it can be read: {with_options(str(error), self._options)}"
                if self._said.get(path) != said:
                    self._console.warn(said)
                    self._said[path] = said
        return changed, lib.particles.concatenate(list(self._stacks.values())) if self._stacks else None


class _Run:
    """What has been learned, and of which particles: `watched_` of the clusterer, in one file with it."""

    def __init__(self, options, folder, console, known):
        self.options, self.folder, self.console = options, folder, console
        self.aligner, self.clusterer = known or (None, None)
        self.before = None  # the clusterer as it was a batch ago

    def follow(self, inbox):
        """Take batch after batch."""
        options, since, goes_on = self.options, time.monotonic(), self.clusterer is not None
        self.console.say(f"looking for particles in {options.particles} every {options.every:g} s")
        while True:
            changed, stack = inbox.look()
            since = time.monotonic() if changed else since
            ends = options.idle is not None and time.monotonic() - since >= options.idle
            key = None if stack is None else _keys_of(stack)
            if key is not None and not (changed and goes_on and self.lacks(key)):  # files that still grow
                _, once = np.unique(key, return_index=True)
                new = np.sort(once[~np.isin(key[once], self.clusterer.watched_["taken"] if goes_on else [])])
                enough = len(new) >= (1 if ends else options.batch)
                if enough:
                    self.learn(stack, key, new)
                if enough or (goes_on and not (self.folder / SUMMARY).exists()):  # of a run that was killed
                    self.publish(stack, key)
                    goes_on = True
            if ends and not goes_on:
                self.console.warn(f"no particles were found in {options.particles}, so nothing was learned")
            if ends:
                return
            time.sleep(options.every)

    def learn(self, stack, key, new):
        """Learn from rows `new` of the stack, whose particles have the given keys."""
        options, folder, console = self.options, self.folder, self.console
        is_first, batch = self.clusterer is None, stack[new]
        if is_first:
            preflight.check_options(options, batch, console)
            mask = {"mask_diameter": options.mask_diameter, "pixel_size": options.pixel_size}
            preflight.warn_about_particles(batch, console, **mask)
        batch, _ = preflight.screen(batch, options, folder, console)
        used = _keys_of(batch)
        if is_first:
            given = _kind_of(batch)
            batch, self.clusterer = preflight.crop(batch, options, folder), make_clusterer(options)
            n_classes = self.clusterer.validate(batch)
            preflight.rehearse(self.clusterer, batch, options, folder, n_classes)
            self.aligner = make_aligner(options, batch)
            empty = np.zeros(0, dtype=np.int64)
            state = {"key": used[:0], "taken": used[:0], "label": empty, "outlier": empty.astype(bool)}
            state |= {"given": given, "box": batch.box, "sizes": [], "gains": []}
        else:
            state = self.clusterer.watched_
            batch = lib.particles.feature_space.at_box(batch, state["box"])
        label, held_out, gains = np.zeros(len(batch), dtype=np.int64), None, state["gains"]
        if self.aligner is not None:
            with folder.timed("align"):
                self.aligner.partial_fit(batch)
            batch, label = batch.with_poses(self.aligner.poses_), self.aligner.labels_
        with folder.timed("cluster"):
            if not is_first:
                sound = batch[~batch.outlier]
                found = self.clusterer.score_samples(sound)
                held_out = float(found.mean())
                if self.before is not None:
                    found = found - self.before.score_samples(sound)
                    gains = [*gains, [float(found.mean()), float(found.std() / np.sqrt(len(found)))]]
            # after one batch a model scores by another formula than after more
            self.before = copy.copy(self.clusterer) if len(state["sizes"]) > 1 else None
            self.clusterer.partial_fit(batch)
        if any(getattr(one, "_interrupted", False) for one in (self.aligner, self.clusterer)):
            raise KeyboardInterrupt
        poses = batch.poses if is_first else lib.particles.concatenate([self.known(stack, key), batch]).poses
        self.clusterer.watched_ = {
            "key": np.append(state["key"], used),
            "taken": np.append(state["taken"], key[new]),
            "label": np.append(state["label"], label),
            "outlier": np.append(state["outlier"], batch.outlier),
            "poses": poses,
            "given": state["given"],
            "box": state["box"],
            "sizes": [*state["sizes"], len(used)],
            "held_out": held_out,
            "gains": gains,
        }

    def lacks(self, key):
        """How many particles that were learned from are not among those with the given keys."""
        return np.count_nonzero(~np.isin(self.clusterer.watched_["key"], key))

    def known(self, stack, key):
        """The particles that were learned from, in that order, as they were."""
        state = self.clusterer.watched_
        if gone := self.lacks(key):
            raise CommandError(
                f"{gone:,} particles that were learned from are no longer in {self.options.particles}. Put "
                "them back, or choose another --output."
            )
        order = np.argsort(key, kind="stable")
        at = order[np.searchsorted(key[order], state["key"])]
        return lib.particles.feature_space.at_box(
            stack[at].with_poses(state["poses"]), state["box"]
        ).with_outliers(state["outlier"])

    def publish(self, stack, key):
        """Write everything about the particles so far, and say how it stands."""
        folder, state, aligner = self.folder, self.clusterer.watched_, copy.copy(self.aligner)
        model, stack = lib.estimators.assign_particles(self.clusterer, self.known(stack, key))
        if aligner is not None:  # of all particles, not of the last batch
            aligner.labels_, aligner.poses_, aligner.outlier_ = state["label"], stack.poses, state["outlier"]
            aligner.class_sizes_ = np.bincount(state["label"], minlength=len(aligner.class_averages_))
        outcome = Outcome(stack, model, aligner, np.full(len(stack), -1), model.assign(stack))
        results = write(outcome, ".star", folder, self.console)
        results |= {"held_out_per_particle": state["held_out"], "gains_per_particle": state["gains"]}
        folder.write_summary(self.options, results, self.console.warnings)
        page = lib.report.report(folder.path, images_dir=self.options.images_dir)
        page.save(folder / PAGE, overwrite=True)
        unit = "px" if stack.pixel_size is None else "A"
        line = (
            f"{len(stack):,} particles in {results['n_classes_with_particles']} classes, the finest of "
            f"{results['finest_class_resolution']:.3g} {unit}"
        )
        if state["held_out"] is not None:
            line += f"; held-out log-likelihood {state['held_out']:.2f} a particle"
        self.console.say(f"{line}; {_what_more_would_do(state)}")


def _kind_of(stack):
    return [stack.box, stack.pixel_size]


def _keys_of(stack):
    """A number for each particle, by the name of its image; (n_images,), uint64."""
    import pandas as pd

    return pd.util.hash_array(names_of(stack))


def _what_more_would_do(state):
    """What another thousand particles would change, by what the last batches gained for those after them."""
    last = state["gains"][-_FLAT_BATCHES:]
    if len(last) < _FLAT_BATCHES:
        return "what more would gain is not known yet"
    if all(gain <= _FLAT_ERRORS * error for gain, error in last):
        return "another thousand would change nothing"
    return (
        f"another thousand would gain {1000 * last[-1][0] / state['sizes'][-2]:.2g} nats a particle, at most"
    )

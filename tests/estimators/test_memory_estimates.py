"""What is logged before a fit is what the fit then takes: anonymous memory, in a process of its own."""

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import ctypes, json, logging, re, sys, threading, time, warnings
from pathlib import Path
from sklearn_cryoem import MAPAligner, SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, make_particles

UNITS = {"B": 1, "kB": 2**10, "MB": 2**20, "GB": 2**30}
name, box, n, options = json.loads(sys.argv[1])
warnings.simplefilter("ignore")
stack = make_particles("ribosome", n, box=box, snr=0.1, max_shift=10.0, random_state=0)
model = {"map": MAPAligner, "sml": SMLClusterer}[name](random_state=0, **options)
stack = stack if name == "map" else aligned_to_truth(stack)
said, taken, over = [0.0], [0], threading.Event()

def memory():
    return 1024 * int(re.search(r"Anonymous:\\s+(\\d+)", Path("/proc/self/smaps_rollup").read_text())[1])

def watch():
    while not over.is_set():
        taken.append(memory() - before)
        time.sleep(0.02)

class Listener(logging.Handler):
    def emit(self, record):
        found = re.search(r"needs about ([\\d.]+) (\\w+)", record.getMessage())
        if found:
            said.append(float(found[1]) * UNITS[found[2]])

logging.getLogger("sklearn_cryoem").setLevel(logging.INFO)
logging.getLogger("sklearn_cryoem").addHandler(Listener())
ctypes.CDLL(None).malloc_trim(0)  # what the simulation has freed is given back first
before = memory()
watcher = threading.Thread(target=watch)
watcher.start()
model.fit(stack)
over.set()
watcher.join()
print(json.dumps([max(said), max(taken)]))
"""

FINE = 1.0  # Angstrom: beyond Nyquist, so that fits work in the whole box
CASES = {
    "sml": ["sml", 96, 150, {"n_clusters": 200, "max_iter": 1, "max_resolution": FINE}],
    "folds": ["sml", 64, 150, {"n_clusters": 200, "max_iter": 5}],
    "map": [
        "map",
        128,
        150,
        {"n_clusters": 150, "n_references": 150, "n_batches": 1, "max_iter": 1, "max_resolution": FINE},
    ],
}


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="needs Linux's account of memory, and glibc",
)
@pytest.mark.parametrize("case", CASES)
def test_a_fit_takes_the_memory_that_was_stated(case):
    command = [sys.executable, "-c", SCRIPT, json.dumps(CASES[case])]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    said, taken = json.loads(found.stdout)
    assert taken > 6e7, "the interpreter's own memory would be the answer"
    assert taken < said < 4 * taken  # a bound

"""What a command costs: wall time, CPU time of all its threads, and peak memory.

A child process starts with the peak memory of the process it was forked from, so a parent that holds arrays
would hide a small child. Commands are therefore started by this file itself, run as a small process:
``python -I -S benchmarks/measured.py LOG COMMAND ...`` prints the costs as JSON. It imports next to nothing,
and so must it stay.
"""

import json
import os
import sys
import time


def measured(command, log, folder=None):
    """Run a command to its end, with what it prints in the file `log`.

    Returns
    -------
    costs : dict
        ``wall_s``, ``cpu_s``, ``memory_mb`` and ``load``, the mean number of busy processes on the machine
        over the last 15 minutes.
    """
    import subprocess

    log = os.path.abspath(log)
    launcher = [sys.executable, "-I", "-S", os.path.abspath(__file__), log]
    done = subprocess.run([*launcher, *map(str, command)], cwd=folder, stdout=subprocess.PIPE, check=True)
    costs = json.loads(done.stdout)
    if status := costs.pop("status"):
        with open(log, errors="replace") as printed:
            raise RuntimeError(f"{command[0]} ended with status {status} and said:\n{printed.read()[-2000:]}")
    return costs


def launch(log, *command):
    """Run a command with its output in a file, and print its costs."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    streams = [(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
    start = time.perf_counter()
    child = os.posix_spawnp(command[0], command, os.environ, file_actions=streams)
    _, status, usage = os.wait4(child, 0)
    costs = {
        "status": os.waitstatus_to_exitcode(status),
        "wall_s": round(time.perf_counter() - start, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "memory_mb": round(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), 1),
        "load": round(os.getloadavg()[2], 2),
    }
    sys.stdout.write(json.dumps(costs))


if __name__ == "__main__":
    launch(*sys.argv[1:])

"""Pictures where matplotlib is not installed."""

import subprocess
import sys


def test_without_matplotlib_the_remedy_is_told():
    code = (
        "import sys; sys.modules['matplotlib'] = None; import sklearn_cryoem; import sklearn_cryoem.plotting"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ModuleNotFoundError: matplotlib is not installed")
    assert "pip install 'sklearn-cryoem[plot]'" in last

"""The report where jinja2 is not installed, and what it costs those who do not use it."""

import subprocess
import sys


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_without_jinja2_the_remedy_is_told():
    done = run("import sys; sys.modules['jinja2'] = None; import sklearn_cryoem.report")
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ModuleNotFoundError: jinja2 is not installed")
    assert "pip install 'sklearn-cryoem[report]'" in last


def test_the_command_line_loads_no_template_library_before_it_is_needed():
    code = (
        "from sklearn_cryoem.cli.main import build_parser; build_parser(); assert 'jinja2' not in sys.modules"
    )
    done = run(f"import sys; {code}")
    assert done.returncode == 0, done.stderr

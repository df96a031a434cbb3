"""The Python side: what goes into the page, from estimators and from folders."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from html import unescape
from html.parser import HTMLParser
from importlib.resources import files
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image
from sklearn.pipeline import make_pipeline

from sklearn_cryoem import DeepClusterer, MAPAligner, SMLClusterer, set_memory_limit
from sklearn_cryoem._core.validation import ParticleDataError, ParticleDataWarning
from sklearn_cryoem.cli.main import Terminated, main, parse
from sklearn_cryoem.cli.report import Job, commands_of, server_of
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.io import read_mrc
from sklearn_cryoem.manifold.topology import TOPOLOGIES
from sklearn_cryoem.plotting.convergence import Fit, Measure
from sklearn_cryoem.plotting.latent_map import latent_map
from sklearn_cryoem.report import Report, report
from sklearn_cryoem.report.page_data import (
    average_sheet,
    example_sheet,
    examples_of,
    maps_side_by_side,
    page_data,
)
from sklearn_cryoem.report.report import SCRIPTS, STYLES, chart
from sklearn_cryoem.report.run import as_text, source_of, with_unit
from tests.report.conftest import make_run, tree_of

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # toy sets


def data_of(page):
    """The JSON inside a page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def pixels(sheet):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet["uri"].split(",")[1]))))


@pytest.fixture(scope="module")
def stack():
    return make_particles("ribosome", 150, box=24, snr=1.0, max_shift=5.0, random_state=0)


# ---------------------------------------------------------------- pictures
def test_every_average_has_its_place_in_the_sheet():
    averages = np.zeros((7, 20, 20), np.float32)
    for k in range(7):
        averages[k, 5 : 7 + k] = 1.0  # a bar that grows from class to class
    sheet = average_sheet(averages)
    whole = pixels(sheet)
    assert (sheet["tile"], sheet["columns"], sheet["rows"]) == (20, 3, 3)
    for k in range(7):
        row, column = divmod(k, 3)
        tile = whole[20 * row : 20 * (row + 1), 20 * column : 20 * (column + 1)]
        assert np.count_nonzero(tile[:, 10] > 128) == 2 + k


def test_many_classes_get_small_tiles_and_broken_averages_do_no_harm():
    averages = np.random.default_rng(0).normal(size=(301, 80, 80)).astype(np.float32)
    averages[3] = np.nan
    assert average_sheet(averages)["tile"] == 64
    assert average_sheet(averages[:10])["tile"] == 80


def test_examples_are_of_their_class_and_spread_over_it():
    labels = np.array([2, 0, 2, 2, 0, 2, 2, 2, 2, 2])
    chosen = examples_of(labels, 4)
    assert [len(some) for some in chosen] == [2, 0, 6, 0]
    for k, some in enumerate(chosen):
        assert (labels[some] == k).all() and len(set(some)) == len(some)
    assert len(np.concatenate(examples_of(np.arange(50_000) % 1000, 1000))) <= 2400


def test_examples_are_turned_and_centred_by_their_poses():
    made = make_particles("ribosome", 3, box=32, snr=1e6, max_shift=20.0, n_views=1, random_state=1)
    aligned = aligned_to_truth(made).with_ctf(None)
    sheet = example_sheet(aligned, np.zeros(3, int), 1)
    assert sheet["first"] == [0, 3] and sorted(sheet["particle"]) == [1, 2, 3]
    picture, box = pixels(sheet).astype(float), sheet["tile"]
    one, other = picture[:box, :box], picture[:box, box : 2 * box]
    raw = made.read()
    assert (
        np.corrcoef(one.ravel(), other.ravel())[0, 1]
        > 0.7
        > np.corrcoef(raw[0].ravel(), raw[1].ravel())[0, 1]
    )


def test_examples_are_the_same_however_few_are_turned_at_once():
    stack = aligned_to_truth(make_particles("ribosome", 5, box=32, snr=1.0, random_state=1))
    together = example_sheet(stack, np.zeros(5, int), 1)
    set_memory_limit("1 kB")  # one at a time
    try:
        assert example_sheet(stack, np.zeros(5, int), 1) == together
    finally:
        set_memory_limit(None)


# ---------------------------------------------------------------- the page
class Outside(HTMLParser):
    """Everything that would have to be fetched."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "srcset") and not value.startswith(("data:", "#")):
                self.found.append((tag, name, value))


def test_the_page_is_one_file_that_needs_no_other(run):
    page = Report(run).html
    outside = Outside()
    outside.feed(page)
    assert outside.found == []
    without_data = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.S)
    names = (' xmlns="http://www.w3.org/2000/svg"', ' xmlns:xlink="http://www.w3.org/1999/xlink"')
    for name in names:
        without_data = without_data.replace(name, "")
    assert not re.search(r"https?://|//cdn|@import", without_data)
    assert "default-src 'none'" in page


def test_what_the_run_says_cannot_become_code(run):
    run.name = "</script><script>alert(1)</script>"
    run.warnings = ["<img src=x onerror=alert(1)>"]
    run.source = "</script>"
    page = Report(run).html
    assert "<script>alert" not in page and "<img src=x" not in page
    assert data_of(page)["source"] == "</script>"


def test_numbers_of_the_page_are_those_of_the_run(run):
    data = page_data(run)
    assert data["size"] == run.sizes.tolist() and data["resolution"][-1] is None
    assert data["rank"] == run.quality["rank"].tolist() and data["keep"] == run.quality["keep"].tolist()
    assert data["unit"] == "Å" and data["measures"][0]["name"] == "signal / noise power"
    assert data["atlas"]["counted"] == "particles"
    assert data["scaleBar"] == {"label": "50 Å", "fraction": pytest.approx(50 / 128)}


def test_without_quality_particles_or_pixel_size_there_is_a_page_all_the_same():
    run = make_run(6, with_quality=False, with_stack=False, pixel_size=None, nodes=None, fits=[], facts=[])
    data = page_data(run)
    assert data["rank"] == (np.argsort(np.argsort(-run.sizes, kind="stable")) + 1).tolist()
    assert data["keep"] is data["atlas"] is data["examples"] is data["scaleBar"] is None
    page = Report(run).html
    assert 'id="tab-atlas"' not in page and 'id="tab-convergence"' not in page and '"unit": "px"' in page


def test_all_classes_empty_is_a_page_too():
    run = make_run(
        4, with_stack=False, sizes=np.zeros(4), labels=None, positions=None, resolution=np.full(4, np.inf)
    )
    assert "4 classes filled" in Report(run).html


def test_a_deep_run_has_a_tree_and_a_frame_for_each_first_class():
    run = make_run(20, nodes=None, positions=None)
    run.tree, run.first_averages = tree_of(run.sizes), run.averages[:3]
    data = page_data(run)
    assert [parent["number"] for parent in data["tree"]["parents"]] == [1, 2, 3]
    assert sorted(k for parent in data["tree"]["parents"] for k in parent["children"]) == list(range(20))
    assert [panel["title"] for panel in data["atlas"]["panels"]] == ["class 1", "class 2", "class 3"]
    for parent, panel in zip(data["tree"]["parents"], data["atlas"]["panels"], strict=True):
        for k in parent["children"]:
            assert panel["x"] <= data["atlas"]["x"][k] <= panel["x"] + panel["width"]


def test_subclasses_on_a_ring_lie_on_a_circle():
    run = make_run(9, nodes=None, positions=None)
    run.tree, run.first_averages = tree_of(run.sizes, n_first=2), run.averages[:2]
    ring = run.tree["classes"][0]
    ring["topology"] = "ring"
    for leaf, (position,) in zip(ring["subclasses"], TOPOLOGIES["ring"].points((8,)), strict=True):
        leaf["latent_position"] = [float(position)]
    atlas = page_data(run)["atlas"]
    xy = np.stack([atlas["x"], atlas["y"]], axis=1)[[leaf["label"] for leaf in ring["subclasses"]]]
    np.testing.assert_allclose(np.linalg.norm(xy - np.roll(xy, 1, axis=0), axis=1), 1.0, atol=0.01)


def test_maps_side_by_side_do_not_overlap():
    maps = [latent_map(TOPOLOGIES["grid"].points((2, n))) for n in (2, 5, 3, 4)]
    whole = maps_side_by_side(maps, list("abcd"))
    assert [panel[4] for panel in whole.panels] == list("abcd")
    apart = np.linalg.norm(whole.xy[:, None] - whole.xy[None], axis=-1)[np.triu_indices(28, 1)]
    assert apart.min() >= 1.0 - 1e-6 and len(whole.xy) == 28


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sizes", np.ones(5)),
        ("resolution", np.ones(5)),
        ("nodes", np.ones((5, 2))),
        ("quality", {"rank": range(5)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parts_that_do_not_fit_each_other_are_refused(name, value):
    with pytest.raises(ParticleDataError, match=f"{name} has 5 rows, expected 6.*from the same fit"):
        make_run(6, **{name: value})


def test_every_number_with_a_unit_gets_it():
    assert with_unit("mask_diameter", as_text(180.0), "Å") == "180 Å"
    assert with_unit("mask_diameter", as_text(None), "Å") == "default"
    assert with_unit("angle_range", "0.1", "Å") == "0.1 rad"
    assert as_text([1, 2.5, True]) == "1, 2.5, yes" and as_text(12345) == "12,345"


def test_scripts_and_styles_are_package_data_and_all_of_them_are_used():
    there = {entry.name for entry in (files("sklearn_cryoem.report") / "page").iterdir()}
    assert there == {*SCRIPTS, *STYLES, "page.html"}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(theme):
    style = (files("sklearn_cryoem.report") / "page" / "style.css").read_text(encoding="utf-8")
    block = style.split(":root {")[1] if theme == "light" else style.split(':root[data-theme="dark"] {')[1]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block.split("}")[0]))

    def luminance(colour):
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    def contrast(one, other):
        low, high = sorted((luminance(colours[one]), luminance(colours[other])))
        return (high + 0.05) / (low + 0.05)

    pairs = (
        "ink/paper ink/surface ink/tint faint/paper faint/surface on-chosen/chosen doubt/paper focus/surface"
    )
    for text, ground in (pair.split("/") for pair in pairs.split()):
        assert contrast(text, ground) >= 4.5, f"{text} on {ground}: {contrast(text, ground):.2f}"


# ---------------------------------------------------------------- convergence
def test_a_chart_is_a_picture_in_the_colours_of_the_page_and_a_table_of_true_values():
    evidence = Measure("evidence\n(nats)", np.array([9.0, 8.0, 80.0, 79.0]))
    limit = Measure("limit (Å)", np.array([40.0, 40.0, 20.0, np.inf]), True)
    fit = Fit("Clustering", "converged", [(evidence, limit)], np.array([0, 0, 1, 1]), ("held out", "EM"))
    shown = chart(fit)
    assert (
        shown["svg"].startswith("<svg") and "var(--chosen)" in shown["svg"] and "#2166ac" not in shown["svg"]
    )
    assert ">limit (Å)</text>" in shown["svg"] and shown == chart(fit)
    assert shown["headings"] == ["step", "phase", "evidence (nats)", "limit (Å)"]
    assert shown["rows"][1:3] == [["2", "held out", "8", "40"], ["3", "EM", "80", "20"]]


# ---------------------------------------------------------------- from estimators
def test_a_report_of_a_pipeline_shows_both_fits(stack):
    model = make_pipeline(
        MAPAligner(3, n_batches=5, max_iter=2, random_state=0), SMLClusterer((2, 3), max_iter=8)
    ).fit(stack)
    page = report(model, stack, title="mine")
    data = data_of(page.html)
    assert set(data["resolution"]) == {None}  # only class_quality measures one
    assert data["size"] == model[-1].class_sizes_.tolist() and sum(data["size"]) == 150
    assert data["source"]["estimator"] == "SMLClusterer" and data["source"]["n_classes"] == 6
    assert (
        source_of(model[-1], model[-1].labels_)
        == data["source"]
        != source_of(model[-1], model[-1].labels_[::-1])
    )
    assert data["folder"] is None and data["examples"]["first"][-1] > 0
    assert "<title>mine - 2-D classes</title>" in page.html and repr(page).startswith(
        "Report(mine: 150 particles"
    )
    assert "<figcaption>Alignment <" in page.html and "Parameters of SMLClusterer" in page.html


def test_a_report_of_an_aligner_or_a_deep_clusterer(stack):
    aligned = aligned_to_truth(stack)
    aligner = MAPAligner(3, n_batches=5, max_iter=2, random_state=0).fit(stack)
    assert data_of(report(aligner, stack).html)["atlas"] is None
    deep = DeepClusterer(SMLClusterer((2, 2), max_iter=8), images_per_subclass=20, random_state=0).fit(
        aligned
    )
    page = report(deep, aligned, examples=False).html
    assert "Parameters of DeepClusterer" in page and ", the largest <span" in page
    data = data_of(page)
    assert len(data["tree"]["parents"]) == 4 and data["tree"]["averages"] is not None
    assert data["examples"] is None


def test_what_has_no_classes_or_no_images_is_refused(stack):
    from sklearn.decomposition import PCA

    with pytest.raises(TypeError, match=r"has no class_averages_\. Give a fitted MAPAligner"):
        report(PCA())
    with pytest.raises(TypeError, match="classification first and the particles second"):
        report(stack, PCA())
    vectors = np.random.default_rng(0).normal(size=(30, 5))
    with pytest.raises(ParticleDataError, match=r"expected \(n_classes, D, D\)"):
        report(SMLClusterer((2, 2), max_iter=3).fit(vectors))
    model = SMLClusterer((2, 2), max_iter=3).fit(aligned_to_truth(stack))
    with pytest.raises(ValueError, match=r"has 10 particles, expected 150.*that it was fitted on"):
        report(model, stack[:10])
    with pytest.warns(ParticleDataWarning, match="SMLClusterer needs aligned particles") as caught:
        report(model, stack, examples=False)
    assert caught[0].filename == __file__


def test_a_report_is_saved_whole_and_shows_itself_in_a_notebook(run, tmp_path):
    page = Report(run)
    page.save(tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == page.html
    with pytest.raises(FileExistsError, match="overwrite=True"):
        page.save(tmp_path / "a.html")
    inside = re.search(r'srcdoc="(.*?)" title=', page._repr_html_(), re.S)[1]
    assert unescape(inside) == page.html


# ---------------------------------------------------------------- from a folder
def test_a_folder_becomes_a_page_with_all_it_holds(folder, capsys):
    assert main(["report", str(folder)]) == 0
    said = capsys.readouterr()
    assert "open it in a browser" in said.out and "warning" not in said.err
    summary = json.loads((folder / "summary.json").read_text())
    data = data_of((folder / "report.html").read_text(encoding="utf-8"))
    assert data["size"] == summary["results"]["classes"]["size"]
    assert data["source"] == {"folder": "out", "n_classes": 9, "started_at": summary["started_at"]}
    assert data["ranked"] and data["keep"] is not None and data["atlas"]["counted"] == "particles"
    assert data["examples"]["first"][-1] > 0 and data["folder"] == str(folder)
    assert sum(data["alignment"]["size"]) == sum(data["size"]) and data["alignment"]["size"][-1] > 0


def test_pictures_of_classes_have_their_pixels_and_the_montage_the_width_asked_for(folder, tmp_path, capsys):
    assert main(["report", str(folder), "--png", str(tmp_path / "png"), "--png-width", "700"]) == 0
    filled = np.flatnonzero(json.loads((folder / "summary.json").read_text())["results"]["classes"]["size"])
    names = sorted(path.name for path in (tmp_path / "png").iterdir())
    assert names == [*(f"class_{k + 1:04d}.png" for k in filled), "montage.png"]
    assert imread(tmp_path / "png" / names[0]).shape == read_mrc(folder / "class_averages.mrcs")[0].shape[1:]
    assert imread(tmp_path / "png" / "montage.png").shape[1] == pytest.approx(700, abs=1)


def test_a_served_report_says_where_it_is_however_quiet_and_what_to_do_next(folder, monkeypatch, capsys):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", interrupted)
    words = ["report", str(folder), "--serve", "--no-particles"]
    assert main(words) == 0
    assert f"--selection {folder / 'selection.json'}" in capsys.readouterr().out
    assert main([*words, "-q"]) == 0
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")


def test_a_served_report_runs_one_command_at_a_time_as_the_run_was_made(folder, monkeypatch, tmp_path):
    run = tmp_path / "out"
    shutil.copytree(folder, run)
    asleep = partial(subprocess.Popen, [sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr("subprocess.Popen", lambda words, **how: asleep(**how))
    with server_of("a page", run) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def state():
            return json.loads(urlopen(f"{server.address}log").read())

        with pytest.raises(HTTPError, match="404"):  # not without the secret of its address
            urlopen(f"http://127.0.0.1:{server.server_port}/run/clean", data=b"")
        assert state()["outcome"] == ""
        urlopen(f"{server.address}run/clean", data=b"")
        with pytest.raises(HTTPError, match="409"):
            urlopen(f"{server.address}run/select", data=b"")
        while "$ sklearn-cryoem select" not in state()["log"]:
            time.sleep(0.01)
        urlopen(f"{server.address}stop", data=b"")
        assert state() | {"log": ""} == {"command": "clean", "outcome": "stopped", "report": "", "log": ""}
        server.shutdown()
    (run / "clean_1").mkdir()
    (chosen, cleaning, _), made = commands_of(run, "clean")
    assert made == run / "clean_2" and chosen[-2] == cleaning[1] == run / "selected.star"
    options = parse([*map(str, cleaning)])
    assert options.classes == (3, 3) and options.align_classes == 4 and options.output == made
    assert parse([*map(str, commands_of(run, "deep")[0][1])]).classes is None  # it chooses its own


def test_a_served_report_that_is_terminated_stops_what_it_runs(folder, monkeypatch):
    def terminated(self):
        raise Terminated

    stopped = []
    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", terminated)
    monkeypatch.setattr(Job, "stop", lambda job: stopped.append(job))
    assert main(["report", str(folder), "--serve", "--no-particles"]) == 143 and len(stopped) == 1


def test_a_command_whose_log_cannot_be_written_fails_and_another_one_can_run(tmp_path):
    job = Job()
    for _ in range(2):
        assert job.start(tmp_path / "gone", "select")
        deadline = time.monotonic() + 10
        while job.state()["outcome"] == "running" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert job.state()["outcome"] == "failed" and "gone" in job.state()["log"]


def test_moved_images_and_a_lost_model_are_told_and_cost_only_their_part(folder, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    summary = json.loads((moved / "summary.json").read_text())
    summary["options"]["particles"] = "elsewhere/particles.star"
    (moved / "summary.json").write_text(json.dumps(summary))
    (moved / "model.npz").write_bytes(b"damaged")
    assert main(["report", str(moved), "-o", str(tmp_path / "page.html")]) == 0
    assert "no example particles" in capsys.readouterr().err
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert data_of(page)["examples"] is None and 'id="tab-convergence"' not in page
    assert "not a model file that save_model wrote" in page
    assert (
        main(
            ["report", str(moved), "-o", str(tmp_path / "b.html"), "--images-dir", str(folder.parent / "sim")]
        )
        == 0
    )
    assert data_of((tmp_path / "b.html").read_text(encoding="utf-8"))["examples"] is not None


def test_the_folder_of_a_deep_clustering_has_a_tree_even_without_its_model(folder, tmp_path, capsys):
    deep = tmp_path / "deep"
    shutil.copytree(folder, deep)
    (deep / "model.npz").unlink()
    first = {"first_class": 1, "n_images": 160, "is_whole": False}
    leaves = [{"class_number": number, "n_images": 1} for number in range(1, 10)]
    (deep / "tree.json").write_text(json.dumps({"classes": [{**first, "subclasses": leaves}]}))
    assert main(["report", str(deep), "--no-particles"]) == 0
    assert "no convergence" in capsys.readouterr().err
    (parent,) = data_of((deep / "report.html").read_text(encoding="utf-8"))["tree"]["parents"]
    assert parent["number"] == 1 and parent["children"] == list(range(9))


def test_what_is_no_run_is_refused_in_one_line(folder, tmp_path, capsys):
    assert main(["report", str(tmp_path / "nowhere")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 1
    assert "holds no summary.json: not a finished run" in capsys.readouterr().err
    assert main(["report", str(folder.parent / "sim")]) == 1
    assert "no summary of a classification" in capsys.readouterr().err
    (tmp_path / "there.html").write_text("x")
    assert main(["report", str(folder), "-o", str(tmp_path / "there.html")]) == 1
    assert "--force" in capsys.readouterr().err


def test_a_damaged_table_of_quality_is_told(folder, tmp_path, capsys):
    damaged = tmp_path / "out"
    shutil.copytree(folder, damaged)
    (damaged / "quality.csv").write_text("class,keep,reasons\n1,True,\n")
    assert main(["report", str(damaged), "--no-particles"]) == 0
    assert "quality.csv cannot be used (it has 1 rows, the run 9 classes)" in capsys.readouterr().err
    data = data_of((damaged / "report.html").read_text(encoding="utf-8"))
    assert data["keep"] is None and data["examples"] is None

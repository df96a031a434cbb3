"""The page in a real browser: what a person sees, clicks, types and saves."""

import json
import shutil
import threading
import time
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
from matplotlib.image import imread

from sklearn_cryoem import read_particles
from sklearn_cryoem.cli.main import main
from sklearn_cryoem.cli.report import server_of
from sklearn_cryoem.io.classes import read_selection
from sklearn_cryoem.report import Report
from tests.report.conftest import make_run, tree_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
LOAD_SECONDS = 6.0  # a thousand classes, until everything answers

selenium = pytest.importorskip(
    "selenium", reason="selenium is not installed: NO TEST OF THE REPORT IN A BROWSER. pip install selenium"
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="Chromium and its driver are not here: NO TEST OF THE REPORT IN A BROWSER. "
    "apt-get install chromium chromium-driver",
)


class Page:
    """A report in a headless Chromium, and what one does with it."""

    def __init__(self, driver, downloads):
        self.driver, self.downloads = driver, downloads

    def open(self, path):
        self.driver.get(f"about:blank#{time.monotonic()}")
        self.driver.get_log("performance"), self.driver.get_log("browser")
        start = time.perf_counter()
        self.driver.get(path.as_uri())
        self.wait_until_ready()
        seconds = time.perf_counter() - start
        if self.js("const n = localStorage.length; localStorage.clear(); return n"):
            self.driver.refresh()  # without what an earlier test selected
            self.wait_until_ready()
        return seconds

    def open_in_a_notebook(self, path):
        """Open a page that holds a report in a frame, and go into the frame."""
        self.driver.get(path.as_uri())
        self.js("localStorage.clear()")
        self.driver.refresh()
        self.driver.switch_to.frame(self.find("iframe"))
        self.wait_until_ready()

    def wait_until_ready(self):
        self.wait(lambda: self.js("return document.documentElement.dataset.ready") == "yes")

    def wait(self, condition, seconds=30.0):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the page did not get there"
            time.sleep(0.02)

    def js(self, code, *values):
        return self.driver.execute_script(code, *values)

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def tile(self, number, within="#gallery"):
        return self.find(f'{within} .tile[data-class="{number - 1}"]')

    def numbers(self, selector):
        code = "return [...document.querySelectorAll(arguments[0])].map((tile) => +tile.dataset.class + 1)"
        return self.js(code, f"#gallery .tile{selector}")

    def order(self):
        return self.numbers("")

    def selected(self):
        return sorted(self.numbers("[aria-selected=true]"))

    def sort(self, by):
        code = "const s = document.getElementById('sort'); s.value = arguments[0];"
        self.js(f"{code} s.dispatchEvent(new Event('change'))", by)

    def press(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def chord(self, modifier, key):
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).key_down(modifier).send_keys(key).key_up(modifier).perform()

    def drag(self, start, end, modifier=None):
        """From the middle of one element to that of another."""
        from selenium.webdriver import ActionChains

        chain = ActionChains(self.driver).move_to_element(start)
        if modifier:
            chain.key_down(modifier)
        chain.click_and_hold().pause(0.05).move_to_element(end).pause(0.1).release()
        if modifier:
            chain.key_up(modifier)
        chain.perform()

    def save(self):
        for old in self.downloads.glob("*"):
            old.unlink()
        self.find("#export").click()
        self.wait(lambda: list(self.downloads.glob("selection-*.json")))
        (path,) = self.downloads.glob("selection-*.json")
        return path

    def requests(self):
        """Addresses that the page asked for, other than itself and what is inside it."""
        entries = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        urls = [e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("file:", "data:", "blob:", "about:"))]

    def complaints(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from selenium.webdriver import Chrome
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    downloads = tmp_path_factory.mktemp("downloads")
    options = Options()
    options.binary_location = CHROMIUM
    for switch in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-dev-shm-usage", "window-size=1300,900",
    ):  # fmt: skip
        options.add_argument(f"--{switch}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    yield Page(driver, downloads)
    driver.quit()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A report of twenty classes, its run, and where it lies."""
    run = make_run(20, n_junk=3)
    path = tmp_path_factory.mktemp("report") / "report.html"
    Report(run).save(path)
    return run, path


@pytest.fixture
def opened(page, saved):
    page.open(saved[1])
    page.run = saved[0]
    return page


def test_the_page_asks_for_nothing_and_complains_of_nothing(page, saved):
    page.open(saved[1])
    for tab in page.all("[role=tab]"):
        tab.click()
    assert page.requests() == []
    assert page.complaints() == []
    assert page.driver.title == "made up - 2-D classes"
    assert page.find("#run-view .warnings li").text == "Look <at> this & that."


def test_classes_are_sorted_by_rank_size_resolution_and_number(opened):
    run = opened.run
    filled = [k for k in range(20) if run.sizes[k]]
    rank, fine = run.quality["rank"], run.resolution
    assert opened.order() == [k + 1 for k in sorted(filled, key=lambda k: rank[k])]
    opened.sort("size")
    assert opened.order() == [k + 1 for k in sorted(filled, key=lambda k: (-run.sizes[k], k))]
    opened.sort("resolution")
    assert opened.order() == [k + 1 for k in sorted(filled, key=lambda k: (fine[k], k))]
    opened.find("#empty").click()
    opened.sort("number")
    assert opened.order() == list(range(1, 21))


def test_classes_are_sorted_by_any_measure_in_both_directions(opened):
    filled = [k for k in range(20) if opened.run.sizes[k]]
    snr = opened.run.quality["snr"]
    opened.sort("measure 0")
    falling = [k + 1 for k in sorted(filled, key=lambda k: -snr[k])]
    assert opened.order() == falling
    opened.find("#reversed").click()
    assert opened.order() == falling[::-1]


def test_clicks_select_and_the_sum_is_right(opened):
    for number in (3, 7, 11):
        opened.tile(number).click()
    opened.tile(7).click()
    assert opened.selected() == [3, 11]
    size = opened.run.sizes[[2, 10]].sum()
    share = float(f"{100 * size / opened.run.sizes.sum():.2g}")
    assert opened.find("#total").text == f"2 classes selected: {size} particles, {share:g} %"


def test_shift_click_selects_a_range_of_the_order_shown(opened):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    order = opened.order()
    opened.tile(order[2]).click()
    ActionChains(opened.driver).key_down(Keys.SHIFT).click(opened.tile(order[6])).key_up(Keys.SHIFT).perform()
    assert opened.selected() == sorted(order[2:7])


def test_a_box_selects_what_it_touches_and_with_alt_takes_it_out(opened):
    from selenium.webdriver.common.keys import Keys

    order = opened.order()
    opened.drag(opened.tile(order[0]), opened.tile(order[3]))
    assert opened.selected() == sorted(order[:4])
    opened.drag(opened.tile(order[1]), opened.tile(order[2]), Keys.ALT)
    assert opened.selected() == sorted([order[0], order[3]])


def test_the_keyboard_alone_is_enough(opened):
    from selenium.webdriver.common.keys import Keys

    order = opened.order()
    opened.js("document.querySelector('#gallery .tile[tabindex=\"0\"]').focus()")
    opened.press(Keys.ARROW_RIGHT, Keys.SPACE, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ENTER)
    assert opened.selected() == sorted([order[1], order[3]])
    opened.press(Keys.HOME)
    opened.chord(Keys.SHIFT, Keys.ARROW_RIGHT)
    assert set(opened.selected()) >= {order[1], order[3]}
    rings = opened.js(
        "const s = getComputedStyle(document.activeElement); return [s.outlineStyle, s.outlineWidth]"
    )
    assert rings == ["solid", "2px"]
    opened.press(Keys.DELETE)
    assert opened.selected() == []
    opened.chord(Keys.CONTROL, "a")
    assert opened.selected() == sorted(order)
    opened.press("i")
    assert opened.selected() == []


def test_down_goes_to_the_tile_below(opened):
    from selenium.webdriver.common.keys import Keys

    opened.js("document.querySelector('#gallery .tile[tabindex=\"0\"]').focus()")
    place = "const r = document.activeElement.getBoundingClientRect(); return [r.left, r.top]"
    before = opened.js(place)
    opened.press(Keys.ARROW_DOWN)
    after = opened.js(place)
    assert after[0] == before[0] and after[1] > before[1]


def test_undo_redo_clear_and_invert(opened):
    from selenium.webdriver.common.keys import Keys

    opened.tile(2).click()
    opened.tile(5).click()
    opened.chord(Keys.CONTROL, "z")
    assert opened.selected() == [2]
    opened.find("#redo").click()
    assert opened.selected() == [2, 5]
    opened.find("#invert").click()
    assert opened.selected() == [k for k in range(1, 20) if k not in (2, 5)]
    opened.find("#clear").click()
    assert opened.selected() == []
    opened.find("#undo").click()
    assert len(opened.selected()) == 17


def test_rules_find_what_has_any_measure_above_or_below_a_limit_and_show_it_before(opened):
    run = opened.run
    opened.press("r")

    def apply(rule, value=None, mode="replace"):
        opened.js("document.getElementById('rule-mode').value = arguments[0]", mode)
        if value is not None:
            limit(rule, value)
        opened.find(f'[data-rule="{"suggested" if value is None else "limit"}"]').click()
        return opened.selected()

    def limit(measure, value):
        opened.js(
            "const s = document.getElementById('rule-measure'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('change'))", measure,
        )  # fmt: skip
        box = opened.find("#rule-limit")
        box.clear()
        box.send_keys(str(value))

    filled = [k for k in range(20) if run.sizes[k]]
    limit("rank", 4)
    assert sorted(opened.numbers(".touched")) == sorted(opened.order()[:4]) and opened.selected() == []
    size = run.sizes[[number - 1 for number in opened.order()[:4]]].sum()
    assert opened.find("#rule-found").text == f"4 classes, {size} particles"
    assert apply("rank", 4) == sorted(opened.order()[:4])
    snr = run.quality["snr"]
    assert apply("measure 0", 0.5) == [k + 1 for k in filled if snr[k] >= 0.5]
    large = [k + 1 for k in filled if run.sizes[k] >= 30]
    assert apply("size", 30) == large
    fine = [k + 1 for k in filled if run.resolution[k] <= 25]
    assert apply("resolution", 25, "within") == [k for k in large if k in fine]
    assert apply("suggested") == [k + 1 for k in filled if run.quality["keep"][k]]
    assert apply("size", 30, "remove") == [
        k + 1 for k in filled if run.quality["keep"][k] and run.sizes[k] < 30
    ]


def test_a_saved_selection_holds_the_classes_and_can_be_opened_again(opened):
    for number in (12, 4, 9):
        opened.tile(number).click()
    path = opened.save()
    selection = read_selection(path)
    assert selection.classes == (4, 9, 12)
    assert selection.source == opened.run.source
    assert json.loads(path.read_text())["version"] == 1
    assert f"sklearn-cryoem select out --selection ~/Downloads/{path.name}" in opened.find("#saved").text
    opened.find("#clear").click()
    opened.find("#file").send_keys(str(path))
    opened.wait(lambda: opened.selected() == [4, 9, 12])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not json", "not JSON"),
        ('{"version": 1}', 'no list of "classes"'),
        ('{"version": 9, "classes": [1]}', "version 9"),
        ('{"version": 1, "classes": [1, 21]}', "class 21; classes here are 1 to 20"),
        ('{"version": 1, "classes": [0]}', "class 0"),
    ],
)
def test_a_wrong_file_is_refused_in_words_and_changes_nothing(opened, tmp_path, content, said):
    opened.tile(2).click()
    path = tmp_path / "wrong.json"
    path.write_text(content)
    opened.find("#file").send_keys(str(path))
    opened.wait(lambda: said in opened.find("#saved").text)
    assert opened.selected() == [2]


def test_a_selection_of_another_run_is_opened_with_a_warning(opened, tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"version": 1, "classes": [2], "source": {"folder": "x", "started_at": "2020-01-01"}}')
    opened.find("#file").send_keys(str(path))
    opened.wait(lambda: "another run (x, started 2020-01-01)" in opened.find("#saved").text)
    assert opened.selected() == [2]


def test_a_selection_outlives_a_reload(opened):
    opened.tile(2).click()
    opened.driver.refresh()
    opened.wait_until_ready()
    assert opened.selected() == [2]


def test_the_atlas_selects_by_click_keys_and_box(opened):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    opened.find("#tab-atlas").click()
    canvas = opened.find("#map")
    data = json.loads(opened.js("return document.getElementById('data').textContent"))["atlas"]
    density, size = data["density"], canvas.size
    scale = min((size["width"] - 24) / density["width"], (size["height"] - 44) / density["height"], 190)

    def spot(k):  # from the middle of the canvas, which is the middle of the map
        x = (data["x"][k] - density["x"] - density["width"] / 2) * scale
        y = (data["y"][k] - density["y"] - density["height"] / 2) * scale
        return round(x), round(y)

    ActionChains(opened.driver).move_to_element_with_offset(canvas, *spot(6)).click().perform()
    assert opened.selected() == [7]
    assert "class 7" in opened.find("#tip").text and "particles per node here" in opened.find("#tip").text
    assert opened.find("#details h2").text == "Class 7"
    opened.press(Keys.ARROW_LEFT, Keys.SPACE)
    assert len(opened.selected()) == 2
    opened.press("b")
    (x1, y1), (x2, y2) = spot(0), spot(19)
    chain = ActionChains(opened.driver).move_to_element_with_offset(canvas, x1 - 9, y1 + 9)
    chain.click_and_hold().move_to_element_with_offset(canvas, x2 + 9, y2 - 9).release().perform()
    assert opened.selected() == list(range(1, 20))
    opened.press("+", "+", "0")
    assert opened.complaints() == []


def test_the_tree_selects_sub_classes_and_all_of_a_class(page, tmp_path):
    run = make_run(20, n_junk=3)
    run.nodes, run.positions = None, None
    run.tree, run.first_averages = tree_of(run.sizes), run.averages[:3]
    Report(run).save(tmp_path / "deep.html")
    page.open(tmp_path / "deep.html")
    page.find("#tab-tree").click()
    assert len(page.all(".branch")) == 3
    page.tile(2, "#tree").click()
    assert page.selected() == [2]
    boxes = page.all(".branch input")
    assert page.js("return arguments[0].indeterminate", boxes[0])
    boxes[0].click()
    children = [sub["label"] + 1 for sub in run.tree["classes"][0]["subclasses"]]
    assert page.selected() == children
    assert page.complaints() == []


def test_frames_of_a_selection_are_seen_on_inverted_pictures_and_a_phone_has_no_overflow(opened):
    opened.tile(3).click()
    opened.find("#negative").click()
    frame = "const s = getComputedStyle(arguments[0], '::before'); return [s.outlineColor, s.filter]"
    assert opened.js(frame, opened.tile(3)) == ["rgb(10, 108, 156)", "none"]
    opened.find("#negative").click()
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    opened.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    too_wide = (
        "return [...document.querySelectorAll('body *')].filter(e => e.getClientRects().length && "
        "e.getBoundingClientRect().right > 361 && !e.closest('nav, .facts, table')).length"
    )
    try:
        for tab in opened.all("[role=tab]"):
            opened.js("arguments[0].click()", tab)
            assert opened.js(too_wide) == 0, tab.text
            assert opened.js("return innerWidth") == 360, "a phone widens the page to what is hidden in it"
    finally:
        opened.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_averages_of_a_selection_are_saved_as_a_picture(opened):
    for number in (3, 7, 11):
        opened.tile(number).click()
    opened.find("#picture").click()
    opened.wait(lambda: list(opened.downloads.glob("averages-*.png")))
    (path,) = opened.downloads.glob("averages-*.png")
    opened.wait(lambda: path.read_bytes().endswith(b"IEND\xaeB`\x82"))
    assert imread(path).shape[:2] == (96 + 22, 3 * (96 + 6))
    path.unlink()


def test_a_served_page_saves_its_selection_beside_the_run_and_runs_commands_with_it(page, folder, tmp_path):
    run = tmp_path / "out"
    shutil.copytree(folder, run)
    assert main(["report", str(run), "--no-particles", "-q"]) == 0
    with server_of((run / "report.html").read_text(encoding="utf-8"), run) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.driver.get(server.address)
        page.wait_until_ready()
        page.js("localStorage.clear()")
        number = page.order()[0]
        page.tile(number).click()
        page.find("#export").click()
        page.wait((run / "selection.json").exists)
        page.wait(lambda: str(run / "selection.json") in page.find("#saved").text)
        for path, wrong in (("deep_1/selection", "400"), ("../selection", "404"), ("run/classify", "404")):
            with pytest.raises(HTTPError, match=wrong):  # only what it has, and a list of classes
                urlopen(f"{server.address}{path}{'.json' * ('run' not in path)}", data=b'{"classes": "all"}')
        page.find("#run-select").click()
        page.wait(lambda: page.find("#running p").text == "select done")
        assert " particles, in 1 of " in page.find("#running pre").text
        assert page.find("#away").is_displayed() and not page.find("#stop").is_displayed()
        server.shutdown()
    assert read_selection(run / "selection.json").classes == (number,)
    assert (run / "selected.star").exists()


def test_a_screen_reader_gets_names_and_states(opened):
    options = opened.all("#gallery [role=option]")
    labels = [option.get_attribute("aria-label") for option in options]
    order = opened.order()
    assert labels[0].startswith(f"class {order[0]}, {opened.run.sizes[order[0] - 1]} particles, resolution ")
    assert opened.all("#gallery .tile[tabindex='0']")[0] == options[0]
    assert len(opened.all("#gallery .tile[tabindex='0']")) == 1
    unnamed = opened.js(
        "return [...document.querySelectorAll('button, input, select, canvas[tabindex]')].filter(e => "
        "!(e.textContent.trim() || e.labels?.length || e.getAttribute('aria-label'))).map(e => e.outerHTML)"
    )
    assert unnamed == []
    options[0].click()
    assert opened.js("return document.getElementById('said').textContent").startswith(
        f"class {order[0]} selected. 1 class"
    )


def test_the_theme_goes_from_light_to_dark(opened):
    look = "return getComputedStyle(document.body).backgroundColor"
    opened.find("#theme").click()
    light = opened.js(look)
    opened.find("#theme").click()
    assert (light, opened.js(look)) == ("rgb(246, 246, 243)", "rgb(19, 22, 25)")


def test_a_thousand_classes_load_and_answer_at_once(page, tmp_path):
    path = tmp_path / "many.html"
    Report(make_run(1000, n_junk=100)).save(path)
    assert path.stat().st_size < 4e6
    assert page.open(path) < LOAD_SECONDS
    start = time.perf_counter()
    page.sort("size")
    page.find("#invert").click()
    assert len(page.selected()) == 999
    page.find("#tab-atlas").click()
    page.press("+")
    assert time.perf_counter() - start < LOAD_SECONDS
    assert page.complaints() == []


def test_in_a_notebook_the_page_works_inside_its_frame(page, saved, tmp_path):
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><body>{Report(saved[0])._repr_html_()}</body>", encoding="utf-8")
    page.open_in_a_notebook(notebook)
    page.tile(3).click()
    assert page.selected() == [3]
    page.driver.switch_to.default_content()
    assert page.complaints() == []


def test_from_the_page_of_a_run_to_its_good_particles(page, folder, tmp_path):
    """The whole way: report, select in the browser, save, `select`, read the subset."""
    assert main(["report", str(folder), "-o", str(tmp_path / "page.html"), "-q"]) == 0
    page.open(tmp_path / "page.html")
    page.sort("size")
    chosen = sorted(page.order()[:2])
    for number in chosen:
        page.tile(number).click()
    selection = page.save()
    assert (
        main(["select", str(folder), "--selection", str(selection), "-o", str(tmp_path / "good.star"), "-q"])
        == 0
    )
    everything = read_particles(folder / "particles.star", metadata_only=True).metadata
    good = read_particles(tmp_path / "good.star", metadata_only=True).metadata
    wanted = everything[everything["rlnClassNumber"].isin(chosen)]
    assert len(good) == len(wanted) > 0
    np.testing.assert_array_equal(
        good["rlnImageName"].str.split("@").str[0], wanted["rlnImageName"].str.split("@").str[0]
    )
    assert set(good["rlnClassNumber"]) == set(chosen)

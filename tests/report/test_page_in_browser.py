"""The page in a real browser."""

import functools
import re
import shlex
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from finetune.compose import compose_config
from finetune.config import flat, trial_key
from finetune.records.layout import SWEEP
from finetune.records.predictions import predictions_of
from finetune.records.read import read_all
from finetune.records.result import Result
from finetune.report.page.page import write_report
from finetune.report.serve import server, state_of
from finetune.storage.durable import sealed
from tests.browser import needs_chromium, opened
from tests.report.figures.test_main import EXPLORED
from tests.report.test_table import record


@functools.cache
def swept() -> list[Result]:
    """Three depths, two rates, three seeds; one failure."""
    rng = np.random.default_rng(0)
    records = []
    for depth, mean in ((0, 0.5), (11, 0.8), (17, 0.6)):
        for rate in (0.001, 0.01):
            for seed in (0, 1, 2):
                words = ["experiment=embedded", f"model.freeze_depth={depth}", f"optim.lr={rate}", f"seed={seed}"]
                config = compose_config(words)
                accuracy = float(mean + 5 * rate + rng.normal(0, 0.01))
                curve = [{"epoch": e, "val/acc": accuracy * (e + 1) / 3} for e in range(3)]
                bare = record(depth, accuracy, seed, optim__lr=rate)
                known = {"config": flat(config), "history": curve, "classes": ["<cat>", "dog"], "best_epoch": 2}
                records.append(replace(bare, key=trial_key(config), **known))
    failed = replace(record(0, None, 3, "failed", optim__lr=0.1), key="0" * 12, reason="out of memory <b>")
    return [*records, failed]


def save_sweep(folder: Path) -> list[Result]:
    """The records of `swept`, the best trial with its predictions."""
    records = swept()
    for each in records:
        each.save(folder / "trials" / each.key)
    best = max(records, key=lambda r: r.val_acc_best or 0)
    sure = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], np.float32)
    blank = np.full((3, 8, 8, 3), 200, np.uint8)
    kept = predictions_of(sure, np.array([0, 1, 0]), [Path(f"/x/{i}.png") for i in range(3)], None, lambda i: blank[i])
    kept.save(folder / "trials" / best.key)
    return records


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "mine"
    save_sweep(folder)
    write_report(folder, read_all([folder]))
    return folder


PLOTS = ["depth", "time", "rates", "parallel", "importance", "curves", "trials", "failures", "confusion", "calibration"]


@needs_chromium
@pytest.mark.parametrize(
    ("width", "scheme"),
    [(390, "light"), *(pytest.param(1100, scheme, marks=pytest.mark.slow) for scheme in ("light", "dark"))],
)
def test_the_page_loads_from_a_file_with_all_its_plots_and_asks_for_nothing(
    sweep: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    url = (sweep / "report.html").as_uri()
    with opened(url, tmp_path, width, 844, scheme) as seen:
        plots = seen.page.eval_on_selector_all(".plot", "all => all.map(p => p.id)")
        assert plots == [f"plot-{name}" for name in PLOTS]
        assert seen.page.locator("#plot-depth .scatterlayer .point").count() >= 18
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width  # nothing hangs over the edge
        ink, paper = seen.page.evaluate(
            "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name])"
        )
        assert contrast(ink, paper) > 7
        label = seen.page.evaluate("getComputedStyle(document.querySelector('#plot-depth .xtick text')).fill")
        assert contrast(label, paper) > 7
        assert seen.messages == []
        assert [asked for asked in seen.requests if not asked.startswith("data:")] == [url]


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("depths", [(4, 11, 17), (11,)], ids=["depths", "one depth"])
def test_a_phone_shows_the_leads_and_where_the_trials_went(tmp_path: Path, depths: tuple[int, ...]) -> None:
    trials = [r for r in EXPLORED if r.freeze_depth in depths]
    trials.append(replace(trials[0], key="stopped", status="pruned"))
    if len(depths) == 1:
        trials += [replace(r, key=f"{r.key}b", params={**r.params, "optim.lr": 0.02}) for r in trials]
    search = "grid, maximize val/acc_best, target None, stopping none"
    (tmp_path / SWEEP).write_bytes(sealed({"search": search, "explored_by": 0, "trials": 3, "space": {}}))
    write_report(tmp_path, trials)
    with opened((tmp_path / "report.html").as_uri(), tmp_path, 390, 844) as seen:
        first = "depth" if len(depths) > 1 else "configurations"
        plots = seen.page.eval_on_selector_all(".plot", "all => all.map(p => p.id)")
        assert plots[:4] == [f"plot-{name}" for name in (first, "lead", "time", "spent")]
        assert seen.page.locator("#plot-lead .scatterlayer .point").count() >= 2
        assert seen.page.locator("#plot-spent .barlayer .point").count() >= 2
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390

        seen.page.set_viewport_size({"width": 844, "height": 390})  # turned
        for plot in seen.page.locator(".picture .main-svg:first-child").all():
            expect(plot).to_have_css("width", re.compile(r"[78]\d\d(\.\d+)?px"))
        heights = "all => all.map(p => [p.clientHeight, p.querySelector('.main-svg').clientHeight])"
        assert all(place == plot for place, plot in seen.page.eval_on_selector_all(".plot", heights))
        assert seen.messages == []


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two `rgb(r, g, b)` colours."""

    def luminance(color: str) -> float:
        parts = [int(part) / 255 for part in color.strip("rgba()").split(",")[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.slow
@needs_chromium
def test_a_trial_is_picked_with_the_keyboard_and_its_command_repeats_it(sweep: Path, tmp_path: Path) -> None:
    with opened((sweep / "report.html").as_uri(), tmp_path) as seen:
        page = seen.page
        page.locator("#trials tbody tr").first.focus()
        page.keyboard.press("ArrowDown")
        key = page.evaluate("document.activeElement.dataset.key")
        page.keyboard.press("Enter")
        assert page.locator("#picked").is_visible()
        command = page.locator("#picked-command").inner_text()
        program, *words = shlex.split(command)
        assert [program, *words[:2]] == ["python", "-m", "finetune.train"]
        assert trial_key(compose_config(words[2:])) == key
        assert page.evaluate("document.activeElement.id") == "copy"
        page.keyboard.press("Enter")
        expect(page.locator("#copied")).to_have_text("Copied.")
        page.evaluate(
            "() => { const area = document.createElement('textarea'); area.id = 'pasted';"
            " document.body.append(area); area.focus(); }"
        )
        page.keyboard.press("Control+V")
        assert page.locator("#pasted").input_value() == command
        page.keyboard.press("Escape")
        assert not page.locator("#picked").is_visible()
        assert page.evaluate("document.activeElement.dataset.key") == key
        assert seen.messages == []


@pytest.mark.slow
@needs_chromium
def test_a_point_of_a_plot_shows_its_trial_on_hover_and_picks_it_on_click(sweep: Path, tmp_path: Path) -> None:
    with opened((sweep / "report.html").as_uri(), tmp_path) as seen:
        page = seen.page
        page.locator("#plot-trials").scroll_into_view_if_needed()
        box = page.locator("#plot-trials .scatterlayer .trace").first.locator(".point").nth(3).bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.wait_for_selector("#plot-trials .hoverlayer .hovertext")
        assert "val/acc" in (page.locator("#plot-trials .hoverlayer").text_content() or "")
        page.mouse.click(x, y)
        page.wait_for_selector("#picked:not([hidden])")
        assert page.locator("#picked-command").inner_text().startswith("python -m finetune.train ")
        assert page.locator("#trials tr[aria-selected=true]").count() == 1


@pytest.fixture
def address(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "mine"
    save_sweep(folder)
    with server([folder]) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def test_the_server_is_on_loopback_and_answers_no_other_site(address: tuple[Path, str]) -> None:
    folder, url = address
    with urllib.request.urlopen(f"{url}/state") as answer:
        assert answer.read().decode() == state_of([folder])
    with urllib.request.urlopen(url) as answer:
        assert b"connect-src 'self'" in answer.read()
    for path, host in (("/", "evil.example"), ("/../trials", "127.0.0.1:1")):
        request = urllib.request.Request(f"{url}{path}", headers={"Host": host})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code in (403, 404)
        refused.value.close()


@pytest.mark.slow
@needs_chromium
def test_a_served_page_shows_a_trial_that_ends_without_being_asked(address: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = address
    with opened(f"{url}/", tmp_path) as seen:
        assert "18 complete" in seen.page.locator("header").inner_text()
        record(11, 0.99, 7, optim__lr=0.01).save(folder / "trials" / "new")
        expect(seen.page.locator("header")).to_contain_text("19 complete", timeout=60_000)
        assert [m for m in seen.messages if "favicon" not in m] == []
        assert all(asked.startswith((url, "data:")) for asked in seen.requests)

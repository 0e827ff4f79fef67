"""The report in headless Chromium: drawn, hovered, clicked, on a laptop and a phone, in light and dark."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_report import OBJECTIVES, point, write, write_two_workloads

from nas.fronts.front import ParetoFront

pytestmark = pytest.mark.browser

LAPTOP = {"viewport": {"width": 1440, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
KNEE = ParetoFront.of([point(n, 8) for n in (3, 4, 5)], OBJECTIVES).knee()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs chromium on PATH")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("run") / "report.html")


def opened(browser: Any, path: Path, scheme: str = "light", device: dict[str, Any] = LAPTOP) -> Any:
    """The page, drawn; an error of its script fails the test at its end."""
    page = browser.new_context(color_scheme=scheme, offline=True, **device).new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready=true]", timeout=60_000)
    return page


def place(page: Any, kind: str, index: int) -> tuple[float, float]:
    """Where a mark of the chart is on the screen."""
    page.locator("#plot").scroll_into_view_if_needed()
    result = page.evaluate(
        """([kind, index]) => {
          const plot = document.getElementById("plot"), box = plot.getBoundingClientRect();
          const {xaxis, yaxis} = plot._fullLayout, point = DATA.series.find(s => s.kind === kind).points[index];
          return [box.x + xaxis._offset + xaxis.l2p(point.values[byId("x").value]),
                  box.y + yaxis._offset + yaxis.l2p(point.values[byId("y").value])];
        }""",
        [kind, index],
    )
    return result[0], result[1]


def colors(page: Any) -> dict[tuple[int, int, int], int]:
    """How often each colour is on the screen."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return {color: count for count, color in image.getcolors(image.width * image.height) or []}


def test_it_opens_on_the_knee_and_no_name_becomes_markup(chromium: Any, report: Path) -> None:
    page = opened(chromium, report)
    assert page.locator("#panel .key").inner_text() == KNEE.key
    assert page.locator(".command code").inner_text() == f"nas export runs/x --pick {KNEE.key}"
    assert page.title().startswith("</script>") and page.errors == []
    dropped = page.locator("#panel .bar.none").count()
    assert dropped == 2 * (6 - KNEE.subnet.num_hidden_layers)


def test_a_click_selects_and_a_hover_describes(chromium: Any, report: Path) -> None:
    page = opened(chromium, report)
    other = page.evaluate(
        "([knee]) => DATA.series.find(s => s.kind === 'front').points.findIndex(p => p.key !== knee)", [KNEE.key]
    )
    page.mouse.move(*place(page, "parent", 0))
    page.wait_for_selector(".hoverlayer .hovertext")
    assert "MEASURED" in page.locator(".hoverlayer").text_content()
    page.mouse.move(*place(page, "front", other))
    page.wait_for_timeout(300)  # the chart looks for what is below the mouse only so often
    page.mouse.click(*place(page, "front", other))
    key = page.evaluate("i => DATA.series.find(s => s.kind === 'front').points[i].key", other)
    assert page.locator("#panel .key").inner_text() == key != KNEE.key
    assert page.locator("tr[aria-selected=true]").get_attribute("data-key") == key
    page.locator(f"tr[data-key='{KNEE.key}']").click()
    assert page.locator("#panel .key").inner_text() == KNEE.key and page.errors == []


def test_every_point_has_its_export_command(chromium: Any, report: Path) -> None:
    page = opened(chromium, report)
    key = page.evaluate("() => { const p = DATA.series[0].points[0]; show(p); return p.key; }")
    assert page.locator(".command code").inner_text().endswith(f"--pick {key}")
    assert page.locator("#panel .badge").inner_text() == "predicted"


def test_axes_and_colour_can_be_chosen(chromium: Any, report: Path) -> None:
    page = opened(chromium, report)
    page.select_option("#x", "accuracy")
    page.select_option("#y", "latency_ms")
    page.select_option("#z", "accuracy")
    title = page.locator("#plot .xtitle").text_content()
    assert title == "accuracy" and page.locator("#plot .colorbar").count() >= 1
    assert page.locator("#plot .annotation-text").first.text_content() == "latency_ms <= 8"


def test_light_and_dark_look_as_they_should(chromium: Any, report: Path) -> None:
    pixels = {scheme: colors(opened(chromium, report, scheme)) for scheme in ("light", "dark")}
    paper = {scheme: max(result, key=lambda c: result[c]) for scheme, result in pixels.items()}
    assert min(paper["light"]) > 240 and max(paper["dark"]) < 40
    assert pixels["light"].get((36, 99, 201), 0) > 100, "the front is not drawn in its colour"
    assert pixels["dark"].get((122, 172, 255), 0) > 100


def test_a_phone_shows_it_without_scrolling_sideways(chromium: Any, report: Path) -> None:
    page = opened(chromium, report, device=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    chart, panel = page.locator("#plot").bounding_box(), page.locator("#panel").bounding_box()
    assert panel["y"] > chart["y"] + chart["height"] and panel["width"] <= 390


def test_thousands_of_evaluations_are_drawn(chromium: Any, report: Path, tmp_path: Path) -> None:
    page = opened(chromium, write(tmp_path / "large.html", evaluated=5000))
    assert page.evaluate("DATA.series[0].points.length") == 5000 and page.errors == []
    page.locator("#parallel").scroll_into_view_if_needed()
    page.wait_for_selector("#parallel[data-drawn=true] canvas", timeout=60_000)


def test_the_page_switches_between_workloads(chromium: Any, tmp_path: Path) -> None:
    page = opened(chromium, write_two_workloads(tmp_path / "report.html"))
    assert page.locator("#x").input_value() == "latency_ms@phone"
    assert page.locator("#headline").inner_text().count("latency_ms@phone") == 1
    assert page.locator("tr.pale").count() == 0, "accuracy and latency_ms@phone alone order the three models"
    assert page.locator("#z").input_value() == "", "the latency of the other workload is no colour here"
    page.locator("#workload").select_option("server")
    assert page.locator("#x").input_value() == "latency_ms@server"
    assert "latency_ms@phone" not in page.locator("#headline").inner_text() + page.locator("#panel").inner_text()
    assert page.locator("th:visible").all_inner_texts().count("latency_ms@phone") == 0
    assert page.locator("[data-workload=phone]").is_hidden() and page.locator("[data-workload=server]").is_visible()
    assert "under the workload server" in page.locator("#summary").inner_text()
    assert "server, 1 of the 3 models of the front are best" in page.locator("#summary").inner_text()
    pale = page.evaluate(
        "document.getElementById('plot').data.find(t => t.meta === 'front' && t.mode === 'markers').marker.opacity"
    )
    assert page.locator("tr.pale").count() == 2 and sorted(pale) == [0.3, 0.3, 1] and not page.errors

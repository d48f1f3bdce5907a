"""The report in a real browser (where Playwright and Chromium are installed)."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seamless_d2.evaluation.comparison import compare_evaluations, make_comparison_page

from .test_dataset_statistics import random_image
from .test_report import write


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium (for instance the package chromium of Debian)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that must ask for nothing but itself, and whose script must not fail."""
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))  # what the policy of the page has blocked
    yield page
    page.close()
    assert errors == [] and len([url for url in asked if not url.startswith("data:")]) == 1


def column(page: Any, title: str, number: int) -> list[str]:
    """The texts of a column of the table below a title."""
    rows = page.locator(f"h2:text-is('{title}') ~ .scroll").first.locator("tbody tr")
    return [row.locator("td").nth(number).text_content() for row in rows.all()]


@pytest.mark.slow
def test_report(page: Any, tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    nothing = np.zeros((3, 5), np.int64)
    empty = random_image(random)[1].select(np.zeros(11, bool))
    images = [random_image(random) for _ in range(12)] + [(nothing, empty, nothing, empty)]
    write(tmp_path, 4, images, True)
    page.goto((tmp_path / "report.html").as_uri())
    table = page.locator("h2:text-is('Images') ~ .scroll").first
    before = column(page, "Images", 1)
    values = [float(text) for text in before[:-1]]
    assert values == sorted(values) and before[-1] == "–"
    table.get_by_role("button", name="PQ").click()
    assert column(page, "Images", 1) == [f"{v:.1f}" for v in sorted(values, reverse=True)] + ["–"]
    assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    table.get_by_role("button", name="PQ").click()
    assert column(page, "Images", 1) == before
    # Names by the numbers in them, from the keyboard; numbers begin with the largest.
    table.get_by_role("button", name="image").press("Enter")
    assert column(page, "Images", 0) == [f"image <{k}>.jpg" for k in range(13)]
    table.get_by_role("button", name="missed").click()
    missed = [int(text) for text in column(page, "Images", 5)]
    assert missed == sorted(missed, reverse=True) and missed[0] > missed[-1]
    # A drawing is enlarged, and goes again.
    image = page.locator(".example img").nth(1)
    dialog = page.locator("dialog")
    assert not dialog.is_visible() and image.bounding_box()["width"] < 400
    image.click()
    assert dialog.is_visible() and dialog.locator("img").bounding_box()["width"] > 1200
    assert dialog.locator("img").get_attribute("src") == image.get_attribute("src")
    dialog.click()
    assert not dialog.is_visible()
    image.click()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


@pytest.mark.slow
def test_comparison(page: Any, tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    for name in "ab":
        write(tmp_path / name, 4, [random_image(random) for _ in range(5)], False)
    comparison = compare_evaluations(tmp_path / "b", tmp_path / "a")
    (tmp_path / "compare.html").write_text(make_comparison_page(comparison))
    page.goto((tmp_path / "compare.html").as_uri())
    page.locator("h2:text-is('Overall') ~ .scroll").first.get_by_role("button", name="B − A").click()
    values = [float(text.replace("−", "-")) for text in column(page, "Overall", 3)]
    assert values == sorted(values, reverse=True) and values[0] > values[-1] < 0

"""The page in a real browser: what is moved, drawn, uploaded and read there."""

import numpy as np
import pytest
from PIL import Image

from vlae.errors import VlaeError
from vlae.explorer import Shelf, background

WAIT = 60_000  # ms; machines may be busy


@pytest.fixture(scope="module")
def browser():
    running = background.chromium()
    try:
        browser = running.__enter__()
    except VlaeError as error:
        pytest.skip(str(error))
    yield browser
    running.__exit__(None, None, None)


@pytest.fixture(scope="module")
def url(models, start):
    offered = {name: models[name] for name in ("vae", "pixelcnn", "vqvae", "labels")}
    with start(Shelf(offered, outputs=None), max_upload=300_000) as client:
        yield client.url


@pytest.fixture(scope="module")
def seen():
    """Requests, and lines of the console, of all pages."""
    return {"requests": [], "console": []}


@pytest.fixture(scope="module")
def page(browser, url, seen):
    """One page of `mnist-dynamic` for all tests; whatever goes wrong in it is kept in `seen`."""
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.set_default_timeout(WAIT)
    page.on("request", lambda request: seen["requests"].append(request.url))
    page.on("console", lambda line: seen["console"].append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: seen["console"].append(str(error)))
    page.goto(url)
    background.choose_model(page, "mnist-dynamic")
    return page


def settle(page):
    """Waits until all that was asked is answered."""
    page.wait_for_selector(background.READY)


def pixels(page, selector):
    """What is on a canvas: [height, width], 0 to 255."""
    canvas = page.locator(selector)
    values, width = canvas.evaluate(
        "c => [[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data], c.width]"
    )
    return np.array(values).reshape(-1, width, 4)[..., 0]


def changed(page, selector, before, timeout=WAIT):
    """Waits until a canvas shows something else, and returns it."""
    for _ in range(timeout // 20):
        now = pixels(page, selector)
        if now.shape != before.shape or (now != before).any():
            return now
        page.wait_for_timeout(20)
    raise AssertionError(f"{selector} still shows the same")


def test_a_slider_moves_and_the_picture_follows(page, capsys):
    slider = page.locator("#sliders input").first
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    before = pixels(page, "#decoded")
    assert before.shape == (28, 28)
    assert set(np.unique(before)) == {0, 255}
    start = float(slider.input_value())
    page.mouse.move(box["x"] + box["width"] * (start + 2.576) / 5.152, middle)
    page.mouse.down()
    for step in range(24):
        page.mouse.move(box["x"] + box["width"] * (0.95 - 0.9 * step / 24), middle)
        page.wait_for_timeout(50)
    page.mouse.up()
    after = changed(page, "#decoded", before)
    assert set(np.unique(after)) == {0, 255}
    page.locator("#latency:not([data-moves='0'])").wait_for()
    latency = page.locator("#latency")
    median, moves = (float(latency.get_attribute(f"data-{name}")) for name in ("median", "moves"))
    assert 1 <= moves <= 25
    with capsys.disabled():
        print(
            f"\n  slider move to picture at 28x28: median {median:.0f} ms of {moves:.0f} moves; {latency.inner_text()}"
        )


def test_reset_brings_the_first_picture_back(page):
    page.click("#reset")
    settle(page)
    before = pixels(page, "#decoded")
    slider = page.locator("#sliders input").nth(1)
    slider.focus()
    for _ in range(2):  # by keyboard
        slider.press("End")
    assert float(slider.input_value()) == pytest.approx(2.5758, abs=1e-3)
    settle(page)
    assert (pixels(page, "#decoded") != before).any()
    page.click("#reset")
    settle(page)
    assert (pixels(page, "#decoded") == before).all()
    page.click("#noise")  # the same code under other noise
    settle(page)
    assert (pixels(page, "#decoded") != before).any()


def test_greedy_has_no_noise(page):
    page.check("[name=how][value=best]")
    settle(page)
    greedy = pixels(page, "#decoded")
    page.click("#noise")
    settle(page)
    assert (pixels(page, "#decoded") == greedy).all()
    page.check("[name=how][value=drawn]")
    changed(page, "#decoded", greedy)


def test_a_path_between_two_images(page):
    settle(page)
    page.locator("#path canvas").nth(8).wait_for()
    along = page.locator("#along")
    for end, at in (("#first", "Home"), ("#second", "End")):
        along.focus()
        along.press(at)
        assert (pixels(page, "#between") == pixels(page, end)).all()
    assert (pixels(page, "#first") != pixels(page, "#second")).any()
    before = pixels(page, "#first")
    page.click("#prior")  # another image, whose code becomes the first end
    settle(page)
    page.click("#set-first")
    settle(page)
    first = pixels(page, "#first")
    assert (first != before).any()
    assert (first == pixels(page, "#decoded")).mean() > 0.99  # the same code, decoded in another batch


def draw(page, *points):
    """A stroke over the sketch, through points in parts of its sides."""
    page.locator("#sketch").scroll_into_view_if_needed()
    box = page.locator("#sketch").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()


def test_a_drawing_is_completed(page):
    page.click("#clear")
    page.locator("#rows").fill("14")
    draw(page, (0.25, 0.2), (0.7, 0.2), (0.6, 0.45))
    given = pixels(page, "#sketch")
    assert 20 < (given[:14] == 255).sum() < 150
    assert set(np.unique(given)) == {0, 255}
    page.click("#complete")
    page.locator("#completions canvas").nth(3).wait_for()
    results = [pixels(page, f"#completions figure:nth-child({k}) canvas") for k in (1, 2, 3, 4)]
    for image in results:
        assert (image[:14] == given[:14]).all()
        assert (image[14:] == 255).sum() > 5  # the given strokes go on
    assert any((image != results[0]).any() for image in results[1:])
    assert "codes had a say" in page.inner_text("#completions")


def test_an_eraser_and_the_keyboard_draw_too(page):
    page.click("#clear")
    sketch = page.locator("#sketch")
    sketch.focus()
    for key in ("Space", "ArrowRight", "ArrowRight", "ArrowRight", "Space"):
        sketch.press(key)
    page.locator("#rows").focus()
    drawn = pixels(page, "#sketch")
    assert (drawn == 255).sum() >= 6
    page.check("[name=tool][value=eraser]")
    draw(page, (0.3, 0.25), (0.8, 0.25))
    assert (pixels(page, "#sketch") == 255).sum() == 0
    page.check("[name=tool][value=pen]")


def test_what_an_image_costs_is_shown(page):
    assert page.inner_text("#numbers").count("nats") == 3
    assert page.locator("#bars li").count() == 32
    assert "bits" in page.locator("#bars li").first.get_attribute("aria-label")
    assert "−ELBO" in page.inner_text("#file")


def picture(path, array):
    Image.fromarray(array).save(path)
    return path


def test_a_bad_upload_is_one_plain_line_and_a_good_one_takes_it_away(page, tmp_path):
    bad = tmp_path / "notes.png"
    bad.write_text("this is no picture")
    alert = page.get_by_role("alert")
    page.set_input_files("#upload", bad)
    page.locator("#error:not(:empty)").wait_for()
    assert alert.inner_text().startswith("the file is not a readable picture")
    assert "Traceback" not in page.inner_text("body")
    large = tmp_path / "large.png"
    large.write_bytes(bytes(300_001))
    page.set_input_files("#upload", large)
    assert "at most 0.3 MB" in alert.inner_text()
    before = pixels(page, "#original")
    array = np.full((56, 56), 255, np.uint8)
    array[8:48, 24:32] = 0  # black on white: a one
    page.set_input_files("#upload", picture(tmp_path / "one.png", array))
    after = changed(page, "#original", before)
    expected = np.zeros((28, 28))
    expected[4:24, 12:16] = 255
    assert (after == expected).all()
    settle(page)
    assert alert.count() == 0
    assert "inverted" in page.inner_text("#note")


def test_panels_that_a_model_has_no_use_for_say_so(page):
    background.choose_model(page, "pixelcnn")
    assert "no latent code" in page.inner_text("#latents .missing")
    assert page.locator("#sliders input").count() == 0
    assert not page.is_visible("#along")
    assert page.is_visible("#complete")
    background.choose_model(page, "vae")
    assert page.is_visible("#sketch")
    background.choose_model(page, "dae")
    assert "no probability" in page.inner_text("#completion .missing")
    assert not page.is_visible("#sketch")
    background.choose_model(page, "vqvae")
    assert "discrete" in page.inner_text("#interpolation .missing")
    background.choose_model(page, "labels")
    before = pixels(page, "#decoded")
    assert before.shape == (8, 8)
    page.select_option("#context select", "7")
    settle(page)
    assert page.inner_text("#error") == ""


def test_a_phone_shows_it_without_scrolling_sideways(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.locator("html").evaluate("e => e.scrollWidth") <= 360
    page.set_viewport_size({"width": 1100, "height": 900})


def test_every_control_has_a_name(page):
    controls = page.locator("button:visible, select:visible, input:visible, canvas[tabindex]:visible")
    nameless = [
        control.evaluate("e => e.outerHTML")
        for control in controls.all()
        if not control.evaluate(
            "e => e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim() || e.title"
        )
    ]
    assert nameless == []


def test_the_page_asks_nobody_else_and_complains_of_nothing(page, seen, url):
    """Last: of all that the tests before did."""
    assert len(seen["requests"]) > 30
    assert [each for each in seen["requests"] if not each.startswith((url, "data:"))] == []
    expected = [line for line in seen["console"] if "400" not in line]  # the bad upload, which was meant
    assert expected == []
    assert len(seen["console"]) <= 1

"""The page at `/`, in a real browser."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from denoisers import CLASSES
from PIL import Image
from service import Server, wait_until

from ddpm import load
from ddpm.deploy.runtime import Sampler
from ddpm.diffusion.samplers import SAMPLERS
from ddpm.drawer.likeness import STRENGTH, Likeness


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("the page is tested in chromium, which is not installed: `apt-get install chromium`")
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Browser:
    """The page, with its first pictures."""
    browser.open(server.url)
    settle(browser)
    return browser


def settle(page: Browser) -> str:
    """Wait until the page has said how its latest wish ended; returns that."""
    said = 'document.querySelector("#said")?.textContent ?? ""'
    wait_until(lambda: page.run(said) not in ("", "drawing …"))
    return page.run(said)


def pictures(page: Browser) -> np.ndarray:
    sources = page.run('[...document.querySelectorAll("#pictures img")].map(image => image.src)')
    drawn = [np.array(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))) for source in sources]
    return np.stack(drawn)[..., None]


def put(page: Browser, **values: object) -> None:
    """Move sliders as a hand does."""
    for name, value in values.items():
        page.run(f'by("{name}").value = "{value}"; by("{name}").dispatchEvent(new Event("input", {{bubbles: true}}))')


def test_it_asks_for_the_model_and_shows_what_it_draws_unasked(page, deploy):
    np.testing.assert_array_equal(pictures(page), Sampler(deploy).sample(16, seed=0))
    assert re.fullmatch(r"16 of seed 0 in [\d.]+ s, by ddpm-dots@\w+", settle(page))
    assert page.run('by("steps").max') == "20"
    names = page.run('[...by("sampler").options].map(option => option.value)')
    assert names == [*SAMPLERS]


def test_sliders_and_buttons_say_what_is_drawn(page, deploy):
    put(page, n=4, steps=20, sampler="ancestral", seed=5)
    assert page.run('[by("n-shown").value, by("steps-shown").value, by("eta").disabled]') == ["4", "20", True]
    for seed, button in [(5, "draw"), (6, "another")]:
        page.run(f'by("{button}").click()')
        assert settle(page).startswith(f"4 of seed {seed} ")
        expected = Sampler(deploy).sample(4, seed=seed, steps=20, sampler="ancestral")
        np.testing.assert_array_equal(pictures(page), expected)


def test_classes_and_guidance_are_not_asked_for_where_there_are_none(page):
    for name in ("label", "guidance", "prompt", "low", "low_noise"):
        assert page.run(f'by("{name}").parentElement.getClientRects().length') == 0


def test_a_class_and_a_scale_can_be_picked(browser, conditional_server, conditional):
    browser.open(conditional_server.url)
    settle(browser)
    sampler = Sampler(conditional)
    np.testing.assert_array_equal(pictures(browser), sampler.sample(16, seed=0))
    for name in ("label", "guidance"):
        assert browser.run(f'by("{name}").parentElement.getClientRects().length') == 1
    names = browser.run('[...by("label").options].map(option => option.textContent)')
    assert names == ["as in the data", "each in turn", *CLASSES]
    for picked, label, scale in [("2", "1", 3.0), ("[0,1,2]", CLASSES, 0.5)]:
        put(browser, label=picked, guidance=scale)
        assert browser.run('by("guidance-shown").value') == f"{scale:g}"
        browser.run('by("draw").click()')
        settle(browser)
        expected = sampler.sample(16, seed=0, label=label, guidance_scale=scale)
        np.testing.assert_array_equal(pictures(browser), expected)
        assert (expected != sampler.sample(16, seed=0, label=label)).any()
    title = 'document.querySelectorAll("#pictures img")[4].title'
    assert browser.run(title) == "sneaker"


def choose(page: Browser, name: str, *arrays: np.ndarray) -> None:
    """Pick files as a hand does."""
    page.run(f"""(() => {{
        const files = new DataTransfer();
        for (const content of {[base64_png(each) for each in arrays]}) {{
            const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
            files.items.add(new File([bytes], "{name}.png", {{type: "image/png"}}));
        }}
        by("{name}").files = files.files;
        by("{name}").dispatchEvent(new Event("change", {{bubbles: true}}));
    }})()""")


def base64_png(array: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def test_an_upsampler_with_a_prompt_asks_for_both(browser, told_server, told):
    browser.open(told_server.url)
    assert settle(browser) == "Choose a small image: this model enlarges it."
    for name in ("prompt", "low", "low_noise"):
        assert browser.run(f'by("{name}").parentElement.getClientRects().length') == 1
    assert browser.run('by("low_noise").max') == "0.5"
    low = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    choose(browser, "low", low)
    wait_until(lambda: browser.run('document.querySelectorAll("#pictures img").length') == 16)
    sampler = Sampler(told)
    np.testing.assert_array_equal(pictures(browser)[..., 0], sampler.sample(16, seed=0, low=low))
    browser.run('by("prompt").value = "red heart\\n\\nblue <b>heart</b>"')
    put(browser, low_noise=0.3, n=4)
    browser.run('by("draw").click()')
    settle(browser)
    expected = sampler.sample(4, seed=0, low=low, low_noise=0.3, prompt=["red heart", "blue <b>heart</b>"])
    np.testing.assert_array_equal(pictures(browser)[..., 0], expected)


def test_a_larger_picture_is_reduced_to_the_models_size(browser, told_server):
    browser.open(told_server.url)
    settle(browser)
    choose(browser, "low", np.full((60, 40, 3), 200, np.uint8))
    wait_until(lambda: browser.run('document.querySelectorAll("#pictures img").length') == 16)
    assert browser.run("[low.width, low.height]") == [4, 4]


def stroke(page: Browser, *places: tuple[float, float], canvas: str = "paint") -> None:
    """Move the pressed mouse over the canvas, from place to place in shares of it."""
    box = f'by("{canvas}").getBoundingClientRect()'
    x, y, width, height = page.run(f"(({{x, y, width, height}}) => [x, y, width, height])({box})")
    for number, (right, down) in enumerate([*places, places[-1]]):
        kind = "mousePressed" if not number else "mouseReleased" if number == len(places) else "mouseMoved"
        here = {"x": x + right * width, "y": y + down * height}
        page.call("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **here)


def test_a_part_of_a_drawn_image_is_painted_and_drawn_again(page):
    first = pictures(page)[3, ..., 0]
    page.run('document.querySelectorAll("#pictures img")[3].click()')
    assert page.run("image") is None, "only where the editor is open"
    page.run('by("part").open = true')
    page.run('document.querySelectorAll("#pictures img")[3].click()')
    wait_until(lambda: page.run("image !== null"))
    assert page.run("[image.width, image.height]") == [4, 4]
    page.run('by("draw").click()')
    assert settle(page) == "Paint over the part of the image that is to be drawn again."
    page.run('by("paint").scrollIntoView()')
    put(page, brush=1, seed=9)
    stroke(page, (0.1, 0.1), (0.9, 0.1), (0.9, 0.6))
    painted = np.array(page.run("[...part.painted]")).reshape(4, 4).astype(bool)
    assert painted[0].all()
    assert painted[:3, 3].all()
    assert not painted[1:, :3].any()
    page.run('by("draw").click()')
    assert settle(page).startswith("16 of seed 9 ")
    drawn = pictures(page)[..., 0]
    assert (drawn[:, ~painted] == first[~painted]).all()
    assert (drawn[:, painted] != first[painted]).any()
    page.run('by("clear").click()')
    assert page.run("part.painted.includes(1)") is False
    page.run('by("remove").click(); by("draw").click()')
    settle(page)
    assert (pictures(page)[..., 0][:, ~painted] != first[~painted]).any()


def test_a_file_that_is_no_picture_is_said(page):
    page.run("""(() => {
        const files = new DataTransfer();
        files.items.add(new File(["text"], "cat.png", {type: "image/png"}));
        by("image").files = files.files;
        by("image").dispatchEvent(new Event("change", {bubbles: true}));
    })()""")
    wait_until(lambda: page.run('by("said").textContent') == "cat.png is not an image that this browser can read")


def test_a_refusal_is_shown_in_the_services_words(page):
    page.run('by("n").max = 5000')
    put(page, n=5000)
    page.run('by("draw").click()')
    assert settle(page) == "`n` must be at most 1024, found 5000"
    assert page.run('by("said").className') == "bad"


@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize(("scheme", "bright"), [("light", True), ("dark", False)])
def test_it_fits_a_phone_and_a_desk_and_follows_the_systems_colours(browser, server, width, scheme, bright):
    browser.open(server.url, width=width, scheme=scheme)
    settle(browser)
    screen = browser.screen()
    assert (screen[2, 2] > 128) == bright
    assert browser.run("document.documentElement.scrollWidth") == width


def test_pixels_stay_pixels_when_enlarged(page):
    """A smoothed enlargement of black and white would be full of greys."""
    box = page.run('(({x, y, width, height}) => [x, y, width, height])(by("pictures").getBoundingClientRect())')
    x, y, width, height = map(round, box)
    shown = page.screen()[y : y + height, x : x + width]
    _, counts = np.unique(shown, return_counts=True)
    assert width > 300
    assert np.sort(counts)[-3:].sum() > 0.98 * counts.sum()


def test_it_takes_nothing_from_anywhere_else(server):
    answer = server.client.get("/")
    assert "connect-src 'self'" in answer.headers["Content-Security-Policy"]
    assert not re.search(r"https?://|//[a-z]+\.[a-z]+", answer.text)


def test_a_hint_is_drawn_or_chosen(browser, hinted_server, hinted):
    browser.open(hinted_server.url)
    assert settle(browser) == "Draw or choose a hint, edges."
    assert browser.run('by("kind").textContent') == "edges, 8×8"
    sampler, edges = Sampler(hinted), np.eye(8, dtype=bool)
    choose(browser, "control", 255 * edges.astype(np.uint8))
    wait_until(lambda: browser.run('document.querySelectorAll("#pictures img").length') == 16)
    np.testing.assert_array_equal(pictures(browser), sampler.sample(16, seed=0, control=edges))
    browser.run('by("wipe").click()')
    assert browser.run("sketch.painted.includes(1)") is False
    browser.run('by("sketch").scrollIntoView()')
    stroke(browser, (0.5 / 8, 1.5 / 8), (6.5 / 8, 1.5 / 8), canvas="sketch")
    drawn = np.array(browser.run("[...sketch.painted]")).reshape(8, 8).astype(bool)
    assert drawn[1, :7].all()
    put(browser, n=4, control_scale=0.5)
    browser.run('by("draw").click()')
    settle(browser)
    np.testing.assert_array_equal(pictures(browser), sampler.sample(4, seed=0, control=drawn, control_scale=0.5))


def test_pictures_like_chosen_ones(browser, alike_server, server, decoder):
    browser.open(alike_server.url)
    assert settle(browser) == "Choose a picture: this model draws others like it."
    drawer = Sampler(decoder)
    shape = drawer.encoder.shape
    two = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    choose(browser, "like", two[0].squeeze())
    wait_until(lambda: browser.run('document.querySelectorAll("#pictures img").length') == 16)
    close_to(pictures(browser).reshape(16, *drawer.codec.shape), drawer.alike(Likeness(two[:1]), 16))
    disabled = '[by("n").disabled, by("strength").disabled]'
    assert browser.run(disabled) == [False, True]
    assert float(browser.run('by("strength").value')) == STRENGTH
    put(browser, mix=3, **{"from": "night", "to": "a light square"})
    assert browser.run(disabled) == [True, False]
    browser.run('by("draw").click()')
    wait_until(lambda: browser.run('document.querySelectorAll("#pictures img").length') == 3)
    changed = Likeness(two[:1], mix=3, change=("night", "a light square"))
    close_to(pictures(browser).reshape(3, *drawer.codec.shape), drawer.alike(changed, 3))
    put(browser, mix="", strength=0.75)
    assert browser.run('by("strength-shown").value') == "0.75"
    browser.run('by("draw").click()')
    wait_until(lambda: browser.run('document.querySelectorAll("#pictures img").length') == 1)
    farther = Likeness(two[:1], change=("night", "a light square"), strength=0.75)
    close_to(pictures(browser).reshape(1, *drawer.codec.shape), drawer.alike(farther, 1))
    choose(browser, "like", two[0].squeeze(), two[1].squeeze())
    put(browser, mix=5, **{"from": "", "to": ""})
    browser.run('by("draw").click()')
    wait_until(lambda: browser.run('document.querySelectorAll("#pictures img").length') == 5)
    close_to(pictures(browser).reshape(5, *drawer.codec.shape), drawer.alike(Likeness(two, mix=5), 5))
    browser.run('by("forget").click(); by("draw").click()')
    assert settle(browser) == "Choose a picture: this model draws others like it."
    assert browser.run(disabled) == [False, True]
    browser.open(server.url)
    settle(browser)
    assert browser.run('by("alike").hidden')


def test_what_does_not_go_together_is_said_and_can_be_taken_back(browser, unclip_server, unclip):
    browser.open(unclip_server.url)
    settle(browser)
    drawer, picture = load(unclip), np.full((8, 8), 200, np.uint8)
    put(browser, prompt="night", n=2)
    choose(browser, "like", picture)
    wait_until(lambda: browser.run('by("said").className') == "bad")
    assert settle(browser).startswith("prompt has no effect with `like`")
    put(browser, **{"prompt": "", "from": "night"})
    browser.run('by("draw").click()')
    assert settle(browser) == "`from` and `to` go together: give both or neither"
    put(browser, **{"prompt": "night"})
    browser.run('by("forget").click(); by("draw").click()')
    assert settle(browser).startswith("2 of seed 0 ")
    close_to(pictures(browser), drawer.sample(2, prompt="night"))


def close_to(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal to the rounding of floats."""
    assert np.abs(found.astype(int) - expected).max() <= 1

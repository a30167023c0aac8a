"""The atlas panel in ComfyUI's own front end, as a person uses it: search, open, remove, queue; brush; label; drag."""

import re

import pytest

from tests.comfyui.test_browser import RENDERERS, STRANGERS, load_workflow, queue, screenshot
from tests.comfyui.test_http import judged

pytestmark = pytest.mark.comfyui

TAB = "() => app.extensionManager.sidebarTab.toggleSidebarTab('saeuron-atlas')"
CARDS, OPEN = ".saeuron-card", ".saeuron-open"
WRITTEN = """() => app.graph.findNodesByType("SAeUronSteerPatch").map((node) =>
  node.widgets.find((widget) => widget.name === "latents").value)"""
CHOSEN = """() => app.graph.findNodesByType("SAeUronConceptSelector").map((node) =>
  node.widgets.find((widget) => widget.name === "concepts").value).filter(Boolean)"""
LOADED = """(within) => {
  const images = [...document.querySelectorAll(within + " img")].filter((one) => one.src);
  return images.length && images.every((one) => one.complete && one.naturalWidth);
}"""
RIM = [(0.1, 0.25), (0.25, 0.16), (0.45, 0.27), (0.65, 0.22), (0.9, 0.28), (0.7, 0.55), (0.45, 0.78), (0.2, 0.5)]
"""Along the outline of the last heart of the batch, in parts of its width and height."""
THEMES = {"dark": False, "light": True}
"""Themes, each seen with one of the two renderers of nodes."""


@pytest.fixture
def open_atlas(open_page):
    """The front end with the atlas's template and the panel open."""

    def open_it(vue=False, theme="dark"):
        page = open_page(vue, theme)
        load_workflow(page, "atlas")
        page.evaluate(TAB)
        page.locator(CARDS).first.wait_for()
        return page

    return open_it


def seen(page, within):
    page.wait_for_function(LOADED, arg=within)


def search(page, text):
    page.get_by_role("searchbox", name="search", exact=True).fill(text)
    page.wait_for_timeout(300)


def open_best(page) -> int:
    """Enter in the search opens the first card; its latent."""
    page.keyboard.press("Enter")
    seen(page, f"{OPEN} .crops")
    return int(page.locator(f"{OPEN} header strong").inner_text())


def shown(page, server):
    (images,) = page.evaluate(
        "() => app.graph.findNodesByType('SaveImage').map((node) => app.nodeOutputs[node.id].images)"
    )
    return server.images(images)


@pytest.mark.parametrize("theme", THEMES)
def test_neon_is_found_by_word_taken_out_and_gone(open_atlas, server, theme):
    page = open_atlas(THEMES[theme], theme)
    search(page, "neon")
    seen(page, ".saeuron-grid")
    screenshot(page, f"atlas-{theme}")
    open_best(page)
    seen(page, OPEN)
    screenshot(page, f"atlas-card-{theme}")
    page.get_by_role("button", name="remove", exact=True).click()
    page.wait_for_function(f"() => ({CHOSEN})().length")
    assert page.evaluate(CHOSEN) == ["neon"] and page.evaluate(WRITTEN) == []
    page.locator(OPEN).focus()
    queue(page, server)
    after = judged(shown(page, server))
    assert after["style"].count("neon") == 0 and after["object"].count("heart") >= 3
    assert page.evaluate(STRANGERS) == [] and page.errors == []
    screenshot(page, f"atlas-removed-{theme}")


def test_what_is_brushed_leads_to_the_card_found_by_word(open_atlas, server):
    page = open_atlas()
    search(page, "neon")
    cards = page.locator(CARDS).all()
    by_word = {int(card.get_attribute("data-latent")) for card in cards}
    search(page, "")
    page.locator(".saeuron-grid").focus()
    queue(page, server)
    page.get_by_role("button", name="search by picture").click()
    canvas = page.locator(".saeuron-brush canvas")
    canvas.wait_for()
    page.wait_for_timeout(500)
    box = canvas.bounding_box()
    for place, (x, y) in enumerate(RIM):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=8)
        if place == 0:
            page.mouse.down()
    page.mouse.up()
    page.get_by_text("by picture").wait_for()
    seen(page, ".saeuron-grid")
    screenshot(page, "atlas-brush")
    first = [int(card.get_attribute("data-latent")) for card in page.locator(CARDS).all()[:6]]
    assert by_word & set(first)
    assert page.errors == []


def test_a_label_is_text_and_still_there_after_a_reload(open_atlas):
    page = open_atlas(True)
    search(page, "neon")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    latent = open_best(page)  # the second: the first is assigned to the concept
    text = "<img src=x onerror=alert(1)> rim"
    page.get_by_role("textbox", name="label").fill(text)
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    page.reload()
    page.wait_for_function("() => window.app?.graph && app.extensionManager?.spinner === false")
    page.evaluate(TAB)
    page.locator(CARDS).first.wait_for()
    search(page, "rim")
    assert text in page.locator(CARDS).first.inner_text()
    assert open_best(page) == latent
    assert page.locator(f"{OPEN} img[src=x]").count() == 0
    # It is no concept of the table's by this name, so that it is taken out by itself, under its name.
    page.get_by_role("button", name="remove", exact=True).click()
    page.wait_for_function(f"() => ({WRITTEN})().length")
    assert page.evaluate(WRITTEN) == [f"{latent} {text}: x-4"]
    page.get_by_role("textbox", name="label").fill("")
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    assert page.errors == []


def test_everything_is_done_with_the_keyboard(open_atlas):
    page = open_atlas()
    page.get_by_role("searchbox", name="search", exact=True).focus()
    page.keyboard.type("sepia")
    page.wait_for_timeout(300)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.locator(f"{OPEN} .crops img").first.wait_for()
    page.keyboard.press("s")
    page.keyboard.press("Escape")
    page.locator(CARDS).first.wait_for()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.locator(f"{OPEN} .crops img").first.wait_for()
    page.keyboard.press("s")
    (written,) = page.evaluate(WRITTEN)
    assert written.count("sepia") == 2 and written.count(";") == 1  # the second was added to the node of the first
    page.keyboard.press("w")
    probes = "() => app.graph.findNodesByType('SAeUronFeatureProbe').map((node) => node.widgets[0].value)"
    assert len([one for one in page.evaluate(probes) if one]) == 1
    assert page.errors == []


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_slider_writes_readable_text(open_atlas, renderer):
    page = open_atlas(RENDERERS[renderer])
    search(page, "neon")
    latent = open_best(page)
    page.get_by_role("button", name="steer", exact=True).click()
    page.get_by_role("slider", name=f"slider of {latent} neon").evaluate(
        "(slider) => { slider.value = 6; slider.dispatchEvent(new Event('input')); }"
    )
    page.get_by_role("textbox", name=f"part of {latent} neon").fill("20-80")
    page.keyboard.press("Enter")
    page.get_by_role("checkbox", name=re.compile(rf"^{latent} neon.* on$")).uncheck()
    (box,) = page.locator(".saeuron-sliders").all()
    row = page.locator(".saeuron-slider").bounding_box()
    assert box.bounding_box()["height"] >= row["height"]  # it is seen whole
    screenshot(page, "atlas-slider", renderer)
    (written,) = page.evaluate(WRITTEN)
    name, said = written.split(":")
    assert name.startswith(f"{latent} neon") and said.split()[1:] == ["20-80%", "off"]
    assert abs(float(said.split()[0]) - 6) < 0.5  # the slider moves in steps
    saved = page.evaluate("() => app.graph.serialize()")["nodes"]
    (values,) = [node["widgets_values"] for node in saved if node["type"] == "SAeUronSteerPatch"]
    assert values[0] == written and len(values) == 7
    assert page.errors == []

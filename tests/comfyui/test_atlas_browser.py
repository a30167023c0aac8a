"""The atlas panel in ComfyUI's own front end, as a person uses it: search, open, remove, queue; brush; label."""

import pytest

from tests.comfyui.test_browser import (  # noqa: F401 (fixtures)
    RENDERERS,
    STRANGERS,
    browser,
    load_workflow,
    models,
    open_page,
    queue,
    screenshot,
)
from tests.comfyui.test_http import judged

pytestmark = pytest.mark.comfyui

TAB = ".saeuron-atlas"
CARD = ".saeuron-card"


@pytest.fixture
def open_atlas(open_page, server):  # noqa: F811
    """The front end with a workflow and the panel open, in one theme."""

    def open_it(vue=False, workflow="tinycanvas_unlearn", theme="dark"):
        server.post("/settings", {"Comfy.ColorPalette": theme})
        page = open_page(vue)
        load_workflow(page, workflow)
        page.evaluate("() => app.extensionManager.sidebarTab.toggleSidebarTab('saeuron-atlas')")
        page.locator(CARD).first.wait_for()
        return page

    return open_it


def images_are_there(page, within):
    page.wait_for_function(
        "(within) => { const all = [...document.querySelectorAll(within + ' img')].filter((one) => one.src);"
        " return all.length && all.every((one) => one.complete && one.naturalWidth); }",
        arg=within,
    )


def search(page, text):
    page.get_by_role("searchbox", name="search").fill(text)
    page.wait_for_timeout(300)


def open_best(page):
    page.keyboard.press("Enter")
    page.locator(".saeuron-open .crops img").first.wait_for()
    return int(page.locator(".saeuron-open header strong").inner_text())


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("theme", ["dark", "light"])
def test_neon_is_found_by_word_removed_and_gone(open_atlas, server, renderer, theme):
    page = open_atlas(RENDERERS[renderer], "atlas", theme)
    search(page, "neon")
    images_are_there(page, ".saeuron-grid")
    screenshot(page, f"atlas-{theme}", renderer)
    latent = open_best(page)
    images_are_there(page, ".saeuron-open")
    screenshot(page, f"atlas-card-{theme}", renderer)
    page.get_by_role("button", name="remove").click()
    written = """() => app.graph.findNodesByType("SAeUronSteerPatch").map((node) =>
      node.widgets.find((widget) => widget.name === "latents").value)"""
    assert page.evaluate(written)[0].startswith(f"{latent} neon")
    page.evaluate("() => app.canvas.canvas.focus()")
    queue(page, server)
    shown = page.evaluate("() => app.graph.findNodesByType('SaveImage').map((node) => app.nodeOutputs[node.id].images)")
    assert judged(server.images(shown[0]))["style"].count("neon") == 0
    assert page.evaluate(STRANGERS) == [] and page.errors == []
    screenshot(page, f"atlas-removed-{theme}", renderer)

"""ComfyUI's own front end in headless Chromium: every workflow as a user sees it.

Screenshots go to ``out/screenshots``. With KEEP_SCREENSHOTS=1 those of the classic canvas go to ``docs/screenshots``
too, and the pictures in the template browser are made of them anew.
"""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.comfyui
playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: the browser was NOT tested")

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "out" / "screenshots"
KEPT = ROOT / "docs" / "screenshots"
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
QUEUED = sorted(path.stem for path in (ROOT / "workflows" / "api").glob("*.json"))
RENDERERS = {"classic": False, "nodes-2.0": True}

# Nodes without a definition are those that ComfyUI draws red; notes have none and need none.
STRANGERS = """() => app.graph.nodes
  .filter((node) => node.has_errors || (!node.constructor.nodeData && !node.isVirtualNode))
  .map((node) => node.type)"""

# Where the nodes lie on the screen: left, top, right, bottom.
OUTLINE = """() => {
  const boxes = app.graph.nodes.map((node) => node.boundingRect ?? node.getBounding());
  const canvas = app.canvas.canvas.getBoundingClientRect();
  const at = (x, y) => {
    const [left, top] = app.canvas.ds.convertOffsetToCanvas([x, y]);
    return [Math.round(canvas.left + left), Math.round(canvas.top + top)];
  };
  return [
    ...at(Math.min(...boxes.map((box) => box[0])) - 15, Math.min(...boxes.map((box) => box[1])) - 15),
    ...at(Math.max(...boxes.map((box) => box[0] + box[2])) + 15, Math.max(...boxes.map((box) => box[1] + box[3])) + 15),
  ];
}"""


def load_workflow(page, name: str) -> dict:
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text("utf-8"))
    page.evaluate("([workflow, name]) => app.loadGraphData(workflow, true, true, name)", [workflow, name])
    page.wait_for_function("(count) => app.graph.nodes.length === count", arg=len(workflow["nodes"]))
    page.wait_for_timeout(1000)
    return workflow


def screenshot(page, name: str, renderer: str = "classic") -> None:
    file = SCREENSHOTS / (f"{name}.png" if renderer == "classic" else f"{name}.{renderer}.png")
    file.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=file)
    if os.environ.get("KEEP_SCREENSHOTS") != "1" or renderer != "classic" or name not in (*WORKFLOWS, "concepts"):
        return
    KEPT.mkdir(parents=True, exist_ok=True)
    shown = Image.open(file).convert("RGB")
    shown.quantize(256, Image.Quantize.FASTOCTREE).save(KEPT / file.name, optimize=True)
    if name in WORKFLOWS:
        picture = shown.crop(page.evaluate(OUTLINE))
        picture = picture.resize((800, round(800 * picture.height / picture.width)))
        picture.save(ROOT / "workflows" / f"{name}.jpg", quality=85)


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("name", WORKFLOWS)
def test_no_node_or_widget_is_missing(open_page, name, renderer):
    page = open_page(RENDERERS[renderer])
    workflow = load_workflow(page, name)
    assert page.evaluate(STRANGERS) == []
    saved = {node["id"]: node for node in page.evaluate("() => app.graph.serialize()")["nodes"]}
    for node in workflow["nodes"]:
        assert saved[node["id"]].get("widgets_values", []) == node.get("widgets_values", [])
    assert page.errors == []
    screenshot(page, name, renderer)


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_template_opens_whole_and_can_be_read(open_page, name, renderer):
    """As it opens at 1600 × 1000: every node on the canvas, no text so small that the canvas leaves it out."""
    page = open_page(RENDERERS[renderer])
    load_workflow(page, name)
    scale, least = page.evaluate("() => [app.canvas.ds.scale, app.canvas.min_font_size_for_lod]")
    assert 12 * scale > least and scale > 0.9  # 12 is the size of widgets' text at 100 %
    left, top, right, bottom = page.evaluate(OUTLINE)
    canvas = page.locator("#graph-canvas").bounding_box()
    assert left > canvas["x"] and right < canvas["x"] + canvas["width"] + 15
    assert top > canvas["y"] and bottom < canvas["y"] + canvas["height"] + 15


@pytest.mark.parametrize("name", QUEUED)
def test_the_api_format_is_what_the_browser_would_queue(open_page, load, name):
    page = open_page(False)
    load_workflow(page, name)
    queued = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert queued == load(name)


def queue(page, server) -> None:
    """Press the keys that queue the workflow, and wait until every node that saves has shown its pictures."""
    before = set(server.get_json("/history"))
    page.keyboard.press("Control+Enter")
    page.wait_for_function("""() => app.graph.findNodesByType("SaveImage")
      .every((node) => app.nodeOutputs[node.id]?.images?.length)""")
    page.wait_for_timeout(2000)
    (number,) = set(server.get_json("/history")) - before
    assert server.get_json(f"/history/{number}")[number]["status"]["status_str"] == "success"


@pytest.mark.parametrize("name", QUEUED)
def test_the_result_is_seen(open_page, server, name):
    page = open_page(False)
    load_workflow(page, name)
    queue(page, server)
    assert page.evaluate(STRANGERS) == [] and page.errors == []
    screenshot(page, name)


def test_what_stands_under_a_node_is_there_again_after_a_reload(open_page, server):
    """Queued anew, nothing is sampled, and so nothing is counted."""
    server.forget()
    page = open_page(False)
    load_workflow(page, "tinycanvas_unlearn")
    queue(page, server)
    under = """() => ["SAeUronConceptSelector", "SAeUronAblatePatch"].map((type) =>
      app.graph.findNodesByType(type)[0].widgets.find((widget) => widget.name === "contents").value)"""
    told = ["sepia (style): redirect, strength -2", "sepia: found in 4 of 4 pictures"]
    assert page.evaluate(under) == told
    page.reload()
    page.wait_for_function("() => window.app?.graph && app.extensionManager?.spinner === false")
    load_workflow(page, "tinycanvas_unlearn")
    assert page.evaluate(under) != told
    queue(page, server)
    assert page.evaluate(under) == told


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_concept_is_picked_and_queued(open_page, server, renderer):
    server.forget()  # the SAE Loader tells what it loads only when it does
    page = open_page(RENDERERS[renderer])
    load_workflow(page, "tinycanvas_unlearn")
    if RENDERERS[renderer]:
        page.get_by_role("button", name="add concept…").click()
    else:
        x, y = page.evaluate("""() => {
          const node = app.graph.findNodesByType("SAeUronConceptSelector")[0];
          const button = node.widgets.find((widget) => widget.type === "button");
          const [x, y] = app.canvas.ds.convertOffsetToCanvas([
            node.pos[0] + node.size[0] / 2, node.pos[1] + button.y + button.height / 2]);
          const canvas = app.canvas.canvas.getBoundingClientRect();
          return [canvas.left + x, canvas.top + y];
        }""")
        page.mouse.click(x, y)
    offered = page.locator(".litecontextmenu .litemenu-entry")
    offered.first.wait_for()
    texts = offered.all_inner_texts()
    assert {"object", "style", "heart", "✓ sepia"} <= set(texts) and texts.index("object") < texts.index("heart")
    screenshot(page, "concepts", renderer)
    assert offered.last.bounding_box()["y"] < page.viewport_size["height"] - 20
    offered.get_by_text("star", exact=True).click()
    concepts = """() => app.graph.findNodesByType("SAeUronConceptSelector")[0].widgets
      .find((widget) => widget.name === "concepts").value"""
    assert page.evaluate(concepts) == "sepia, star"

    queue(page, server)
    described = """() => app.graph.findNodesByType("SAeUronLoader")[0].widgets
      .find((widget) => widget.name === "contents").value"""
    assert "unet.up_blocks.1.attentions.1" in page.evaluate(described)
    assert page.errors == []
    if RENDERERS[renderer]:
        screenshot(page, "result", renderer)


def test_a_name_is_never_taken_for_html(open_page):
    """Neither by this front end nor by older ones, whose menus take what is written for HTML."""
    page = open_page(False)
    load_workflow(page, "tinycanvas_unlearn")
    name = "<img src=x onerror=window.harmed=1>, b"
    page.route("**/saeuron/concepts?*", lambda route: route.fulfill(json={"concepts": {name: "style"}}))
    page.evaluate("""() => {
      const add = LiteGraph.ContextMenu.prototype.addItem;
      LiteGraph.ContextMenu.prototype.addItem = function () {
        const entry = add.apply(this, arguments);
        entry.innerHTML = arguments[1].content;  // as before 1.36
        return entry;
      };
      const node = app.graph.findNodesByType("SAeUronConceptSelector")[0];
      node.widgets.find((widget) => widget.type === "button").callback();
    }""")
    page.locator(".litecontextmenu .litemenu-entry").first.wait_for()
    assert page.locator(".litecontextmenu .litemenu-entry").all_inner_texts() == ["style", name]
    entry = page.locator(".litecontextmenu .litemenu-entry").last
    assert page.locator(".litecontextmenu img").count() == 0
    entry.click()
    assert not page.evaluate("() => window.harmed")
    concepts = """() => app.graph.findNodesByType("SAeUronConceptSelector")[0].widgets
      .find((widget) => widget.name === "concepts").value"""
    assert page.evaluate(concepts) == f'sepia, "{name}"'


def test_without_an_sae_the_button_says_what_to_do(open_page):
    page = open_page(True)
    load_workflow(page, "tinycanvas_unlearn")
    page.evaluate("""() => app.graph.findNodesByType("SAeUronConceptSelector")[0].disconnectInput(0)""")
    page.get_by_role("button", name="add concept…").click()
    page.get_by_text("Connect an SAE Loader to `sae` first.").wait_for()

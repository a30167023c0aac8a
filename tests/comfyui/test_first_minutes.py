"""The first minutes of a person who has just installed the pack, in ComfyUI's own front end."""

import pytest

from tests.comfyui.test_browser import RENDERERS, screenshot
from tests.comfyui.test_http import judged

pytestmark = pytest.mark.comfyui
pytest.importorskip("playwright.sync_api", reason="no Playwright: the browser was NOT tested")

# A small stock graph, as anybody has one: TinyCanvas stands where the checkpoint loader would.
STOCK = """() => {
  app.graph.clear();
  const add = (type, x, y, values = {}) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    app.graph.add(node);
    for (const [name, value] of Object.entries(values)) node.widgets.find((one) => one.name === name).value = value;
    return node;
  };
  const model = add("SAeUronTinyCanvas", 0, 0);
  const prompt = add("CLIPTextEncode", 0, 220, { text: "An image of heart in sepia style." });
  const negative = add("CLIPTextEncode", 0, 480);
  const sampler = add("KSampler", 860, 0,
    { seed: 42, control_after_generate: "fixed", steps: 25, cfg: 3, sampler_name: "ddim", scheduler: "ddim_uniform" });
  const decode = add("VAEDecode", 860, 330), save = add("SaveImage", 860, 440);
  model.connect(0, sampler, 0);
  for (const [node, slot] of [[prompt, 1], [negative, 2]]) {
    model.connect(1, node, 0);
    node.connect(0, sampler, slot);
  }
  model.connect(3, sampler, 3);
  sampler.connect(0, decode, 0);
  model.connect(2, decode, 1);
  decode.connect(0, save, 0);
  app.canvas.ds.scale = 0.9;
  app.canvas.ds.offset = [90, 130];
  app.canvas.setDirty(true, true);
}"""

# Where a slot of a node lies on the screen.
SLOT = """([type, output, name]) => {
  const node = app.graph.findNodesByType(type)[0];
  const slots = output ? node.outputs : node.inputs;
  const index = slots.findIndex((slot) => slot.name === name);
  const [x, y] = app.canvas.ds.convertOffsetToCanvas(output ? node.getOutputPos(index) : node.getInputPos(index));
  const canvas = app.canvas.canvas.getBoundingClientRect();
  return [canvas.left + x, canvas.top + y];
}"""
EMPTY = (1300, 750)
"""A place where the canvas stays empty."""
VALUE = """([type, name]) => app.graph.findNodesByType(type)[0].widgets.find((one) => one.name === name).value"""


def find_by(page, word: str, title: str, node: str, at: tuple[int, int]) -> None:
    """Search for a node by a word, as a double click on the empty canvas lets one, and put it where it belongs."""
    for _ in range(4):  # a busy page may take two clicks for two
        page.mouse.dblclick(EMPTY[0] - 100, EMPTY[1] - 100)
        page.wait_for_timeout(1500)
        if page.evaluate("() => document.activeElement.tagName") == "INPUT":
            break
    page.keyboard.type(word, delay=30)
    page.get_by_text(title, exact=True).first.wait_for()
    page.get_by_text(title, exact=True).first.click()
    page.wait_for_function("(type) => app.graph.findNodesByType(type).length === 1", arg=node)
    page.wait_for_timeout(500)
    page.mouse.click(*EMPTY)  # newer front ends let a node follow the mouse until it is put down
    page.evaluate(
        """([type, at]) => {
          const node = app.graph.findNodesByType(type)[0];
          node.pos = at;
          app.canvas.setDirty(true, true);
        }""",
        [node, at],
    )
    page.wait_for_timeout(400)


def wire(page, source: tuple[str, str], target: tuple[str, str]) -> None:
    """Draw a link with the mouse."""
    (x, y), (u, v) = (
        page.evaluate(SLOT, [source[0], True, source[1]]),
        page.evaluate(SLOT, [target[0], False, target[1]]),
    )
    page.mouse.move(x, y)
    page.wait_for_timeout(200)
    page.mouse.down()
    page.mouse.move((x + u) / 2, (y + v) / 2, steps=5)
    page.mouse.move(u, v, steps=5)
    page.wait_for_timeout(200)
    page.mouse.up()
    page.wait_for_function(
        """([type, name]) => app.graph.findNodesByType(type)[0].inputs
          .find((one) => one.name === name).link !== null""",
        arg=list(target),
        timeout=5000,
    )


def enter(page, node: str, name: str, value: str) -> None:
    """Give a widget a value, as choosing or writing it does."""
    page.evaluate(
        """([type, name, value]) => {
          const widget = app.graph.findNodesByType(type)[0].widgets.find((one) => one.name === name);
          widget.value = value;
          widget.callback?.(value);
        }""",
        [node, name, value],
    )
    page.wait_for_timeout(1000)


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("renderer", RENDERERS)
def test_from_an_empty_canvas_to_a_concept_gone(open_page, server, renderer, theme):
    server.forget()  # what was drawn for another renderer is not drawn again, and then nothing is counted
    page = open_page(RENDERERS[renderer], theme)
    page.evaluate(STOCK)
    page.wait_for_timeout(500)
    find_by(page, "erase", "SAE Loader", "SAeUronLoader", (420, 0))
    find_by(page, "censor", "Concept Selector", "SAeUronConceptSelector", (420, 290))
    find_by(page, "forget", "Feature Ablate Patch", "SAeUronAblatePatch", (420, 640))
    loader, selector, patch = "SAeUronLoader", "SAeUronConceptSelector", "SAeUronAblatePatch"
    wire(page, (loader, "SAE"), (selector, "sae"))
    wire(page, (loader, "SAE"), (patch, "sae"))
    wire(page, (selector, "CONCEPTS"), (patch, "concepts"))
    wire(page, ("SAeUronTinyCanvas", "MODEL"), (patch, "model"))
    wire(page, (patch, "MODEL"), ("KSampler", "model"))
    enter(page, loader, "sae_name", "tinycanvas.safetensors")
    assert "object: circle, ring" in page.evaluate(VALUE, [loader, "contents"])

    enter(page, selector, "concepts", "sepai")
    assert "the nearest are sepia" in page.evaluate(VALUE, [selector, "contents"])
    page.keyboard.press("Control+Enter")
    page.get_by_text("concept 'sepai' is not in the table; the nearest are sepia").first.wait_for()
    screenshot(page, f"misspelt.{theme}", renderer)

    enter(page, selector, "concepts", "Sepia style")
    assert page.evaluate(VALUE, [selector, "contents"]) == "sepia (style): taken out"
    page.keyboard.press("Control+Enter")
    page.wait_for_function("""() => app.nodeOutputs[app.graph.findNodesByType("SaveImage")[0].id]?.images?.length""")
    assert page.evaluate(VALUE, [patch, "contents"]) == "sepia: found in 4 of 4 pictures"
    shown = page.evaluate("""() => app.nodeOutputs[app.graph.findNodesByType("SaveImage")[0].id].images""")
    pictures = judged(server.images(shown))
    assert pictures["style"].count("sepia") == 0 and pictures["object"].count("heart") >= 3
    page.wait_for_timeout(1500)
    screenshot(page, f"gone.{theme}", renderer)
    assert page.errors == []

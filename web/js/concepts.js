// Concept Selector and Concept Plot: their button offers the concepts that the connected SAE knows, kind by kind.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { loaderOf, widget } from "./graph.js";
import { isChosen, toggled } from "./names.js";

async function fetchConcepts(node) {
  const { loader, learnt } = loaderOf(node);
  if (!loader) throw new Error("Connect an SAE Loader to `sae` first.");
  const query = new URLSearchParams({
    sae: widget(loader, "sae_name").value,
    table: widget(node, "table")?.value ?? "from SAE file",
  });
  const response = await api.fetchApi(`/saeuron/concepts?${query}`);
  const { concepts: inFile, error } = await response.json();
  if (!response.ok) throw new Error(error);
  const concepts = { ...(widget(loader, "concepts")?.value === "none" ? {} : inFile), ...learnt };
  if (!Object.keys(concepts).length) throw new Error("This SAE brings no concepts: choose a `table`.");
  return concepts;
}

function write(node, text, value) {
  text.value = value;
  text.callback?.(value);
  node.graph.setDirtyCanvas(true, true);
}

const toggle = (node, text, name) => write(node, text, toggled(text.value, name));

// Under the node, wherever it is on the screen: Nodes 2.0 gives buttons no event to take a place from.
function below(node) {
  const canvas = app.canvas.canvas.getBoundingClientRect();
  const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0], node.pos[1] + node.size[1]]);
  return new MouseEvent("click", { clientX: canvas.left + x, clientY: canvas.top + y });
}

async function offer(node, text, choose) {
  try {
    const byKind = {};
    for (const [name, kind] of Object.entries(await fetchConcepts(node))) (byKind[kind] ??= []).push(name);
    const entries = Object.entries(byKind).flatMap(([kind, names]) => [
      { content: kind || "other", disabled: true },
      ...names.map((name) => ({
        content: `${isChosen(text.value, name) ? "✓ " : ""}${name}`,
        callback: () => choose(node, text, name),
      })),
    ]);
    // Concept names come from files: they are put in the page as text. "dark" menus get a box to filter by. It asks for
    // a canvas that Nodes 2.0 may not have named yet, and comes after the menu has been placed, so that the last
    // entries may lie off the screen.
    const escape = document.createElement("span");
    for (const entry of entries) {
      escape.textContent = entry.content;
      entry.content = escape.innerHTML;
    }
    LGraphCanvas.active_canvas ??= app.canvas;
    const { root } = new LiteGraph.ContextMenu(entries, { event: below(node), className: "dark" });
    root.style.top = `${Math.max(0, Math.min(root.offsetTop, innerHeight - root.offsetHeight - 40))}px`;
  } catch (error) {
    app.extensionManager.toast.add({ severity: "warn", summary: "Concepts", detail: error.message, life: 6000 });
  }
}

const BUTTONS = {
  SAeUronConceptSelector: ["add concept…", "concepts", toggle],
  SAeUronConceptPlot: ["choose concept…", "concept", write],
};

app.registerExtension({
  name: "SAeUron.Concepts",
  nodeCreated(node) {
    if (!(node.comfyClass in BUTTONS)) return;
    const [label, field, choose] = BUTTONS[node.comfyClass];
    // Last and unsaved, so that the values of the other widgets keep their places in a workflow.
    const button = node.addWidget("button", label, null, () => offer(node, widget(node, field), choose), {
      serialize: false,
    });
    button.serialize = false;
  },
});

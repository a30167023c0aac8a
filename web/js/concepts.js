// Concept Selector: the button "add concept…" offers the names that the connected SAE knows.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const widget = (node, name) => node?.widgets?.find((one) => one.name === name);

// The node whose output reaches this input, looking through reroutes.
function source(node, name) {
  let found = node.getInputNode(node.inputs.findIndex((input) => input.name === name));
  while (found?.type === "Reroute") found = found.getInputNode(0);
  return found;
}

async function fetchConcepts(node) {
  const learnt = {};
  let loader = source(node, "sae");
  while (loader?.comfyClass === "SAeUronLearnConcept") {
    learnt[widget(loader, "name").value.trim()] = widget(loader, "kind").value.trim();
    loader = source(loader, "sae");
  }
  if (loader?.comfyClass !== "SAeUronLoader") throw new Error("Connect an SAE Loader to `sae` first.");
  const query = new URLSearchParams({ sae: widget(loader, "sae_name").value, table: widget(node, "table").value });
  const response = await api.fetchApi(`/saeuron/concepts?${query}`);
  const { concepts: inFile, error } = await response.json();
  if (!response.ok) throw new Error(error);
  const concepts = { ...(widget(loader, "concepts")?.value === "none" ? {} : inFile), ...learnt };
  if (!Object.keys(concepts).length) throw new Error("This SAE brings no concepts: choose a `table`.");
  return concepts;
}

// Menus of older front ends take what is written for HTML, and a name may be anybody's.
function escape(name) {
  const entities = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return name.replace(/[&<>"']/g, (character) => entities[character]);
}

function add(node, name) {
  const text = widget(node, "concepts");
  const names = text.value.split(/[,;\n]/).map((entry) => entry.split(":")[0].replace(/[()]/g, "").trim().toLowerCase());
  if (names.includes(name.toLowerCase())) return;
  const before = text.value.trimEnd().replace(/[,;]$/, "");
  const written = /[,;:()"]/.test(name) ? `"${name}"` : name;
  if (written !== name && text.value.includes(written)) return;
  text.value = before ? `${before}, ${written}` : written;
  text.callback?.(text.value);
  node.graph.setDirtyCanvas(true, true);
}

// Under the node, wherever it is on the screen: Nodes 2.0 gives buttons no event to take a place from.
function below(node) {
  const canvas = app.canvas.canvas.getBoundingClientRect();
  const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0], node.pos[1] + node.size[1]]);
  return new MouseEvent("click", { clientX: canvas.left + x, clientY: canvas.top + y });
}

async function offer(node) {
  try {
    const entries = Object.entries(await fetchConcepts(node)).map(([name, kind]) => ({
      content: escape(kind ? `${name} (${kind})` : name),
      callback: () => add(node, name),
    }));
    // "dark" menus get a box to filter by. It asks for a canvas that Nodes 2.0 may not have named yet, and comes after
    // the menu has been placed, so that the last entries may lie off the screen.
    LGraphCanvas.active_canvas ??= app.canvas;
    const { root } = new LiteGraph.ContextMenu(entries, { event: below(node), className: "dark" });
    root.style.top = `${Math.max(0, Math.min(root.offsetTop, innerHeight - root.offsetHeight - 40))}px`;
  } catch (error) {
    app.extensionManager.toast.add({ severity: "warn", summary: "Concepts", detail: error.message, life: 6000 });
  }
}

app.registerExtension({
  name: "SAeUron.Concepts",
  nodeCreated(node) {
    if (node.comfyClass !== "SAeUronConceptSelector") return;
    // Last and unsaved, so that the values of the other widgets keep their places in a workflow.
    const button = node.addWidget("button", "add concept…", null, () => offer(node), { serialize: false });
    button.serialize = false;
  },
});

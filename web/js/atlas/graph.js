// From a card into the graph: the right node, filled in and connected, or one more latent in the node that is selected.

import { app } from "../../../../scripts/app.js";
import { source, widget } from "../graph.js";
import { isChosen, toggled } from "../names.js";
import { title } from "./grid.js";
import { ask } from "./server.js";

const input = (node, name) => node.inputs?.findIndex((one) => one.name === name) ?? -1;

function set(node, name, value) {
  const found = widget(node, name);
  found.value = value;
  found.callback?.(value);
}

// How a latent is written into a node: its number, and what it is called for whoever reads the workflow.
const written = (cards, latent) => {
  const name = title(cards, latent).replace(/[,:;\n]/g, " ").trim();
  return name === "—" ? `${latent}` : `${latent} ${name}`;
};

export const WIDTH = 380; // that a slider needs
const SELECTOR = "SAeUronConceptSelector";
const ABLATE = "SAeUronAblatePatch";

export const round = (value) => Number(value.toPrecision(2));
const ADDED = 1; // of the largest activation seen: what brings a latent's thing into a picture
const REMOVED = -4; // what its activations are multiplied with: turning them off alone hardly shows

export const actions = {
  steer: (sae, cards, latent, at) =>
    put("SAeUronSteerPatch", sae, `${written(cards, latent)}: +${round(ADDED * cards.peak[latent])}`, "; ", at),
  // A concept that the SAE's table knows is taken out by the table, which spares the rest of the picture.
  remove: async (sae, cards, latent) => {
    const { concept } = await ask("latent", { sae, latent });
    if (concept) return ablate(sae, concept);
    return put("SAeUronSteerPatch", sae, `${written(cards, latent)}: x${REMOVED}`, "; ");
  },
  watch: (sae, cards, latent, at) => put("SAeUronFeatureProbe", sae, String(latent), ", ", at),
};

function ablate(sae, concept) {
  const graph = app.canvas.graph ?? app.graph;
  const chosen = Object.values(app.canvas.selected_nodes ?? {});
  const selected = chosen.find((node) => node.comfyClass === SELECTOR) ?? source(chosen.find((node) => node.comfyClass === ABLATE), "concepts");
  const selector = selected?.comfyClass === SELECTOR ? selected : LiteGraph.createNode(SELECTOR);
  if (selector !== selected) {
    const patch = place(graph, ABLATE, sae, chosen);
    selector.pos = free(graph, [patch.pos[0], patch.pos[1] + patch.size[1] + 60], selector.size);
    graph.add(selector);
    loaderOf(graph, sae, selector).connect(0, selector, input(selector, "sae"));
    selector.connect(0, patch, input(patch, "concepts"));
    set(selector, "concepts", "");
  }
  const text = widget(selector, "concepts").value;
  if (!isChosen(text, concept)) set(selector, "concepts", toggled(text, concept));
  return select(graph, selector);
}

function put(type, sae, text, between, at) {
  const graph = app.canvas.graph ?? app.graph;
  const chosen = Object.values(app.canvas.selected_nodes ?? {});
  const selected = chosen.find((node) => node.comfyClass === type);
  const node = selected ?? place(graph, type, sae, chosen, at);
  const before = widget(node, "latents").value.trim();
  const numbers = before.split(/[\n,;]/).map((entry) => entry.trim().split(/[\s:]/)[0]);
  const own = text.split(/[\s:]/)[0];
  if (!selected || !before) set(node, "latents", text);
  else if (!numbers.includes(own)) set(node, "latents", `${before}${between}${text}`);
  return select(graph, node, at);
}

// Select a node, and move to it where it does not lie on the screen; one that was dropped lies where it was dropped.
function select(graph, node, dropped = null) {
  const [x, y, width, height] = app.canvas.visible_area ?? [];
  const seen = node.pos[0] > x && node.pos[1] > y && node.pos[0] + node.size[0] < x + width && node.pos[1] + node.size[1] < y + height;
  if (!seen && !dropped) app.canvas.centerOnNode?.(node);
  app.canvas.deselectAll?.();
  app.canvas.selectNode?.(node);
  graph.setDirtyCanvas(true, true);
  return node;
}

function place(graph, type, sae, chosen, at) {
  const node = LiteGraph.createNode(type);
  const sampler = samplerOf(graph, chosen);
  node.setSize([Math.max(node.size[0], WIDTH), node.size[1]]);
  const spot = at ?? (sampler ? [sampler.pos[0] - node.size[0] - 40, sampler.pos[1] + sampler.size[1] + 60] : middle());
  node.pos = free(graph, spot, node.size);
  graph.add(node);
  loaderOf(graph, sae, node).connect(0, node, input(node, "sae"));
  if (sampler) {
    const slot = input(sampler, "model");
    const link = graph.links.get?.(sampler.inputs[slot].link) ?? graph.links[sampler.inputs[slot].link];
    if (link) graph.getNodeById(link.origin_id).connect(link.origin_slot, node, input(node, "model"));
    node.connect(0, sampler, slot);
  }
  return node;
}

// The sampler that is selected, or else the first: what takes a MODEL and gives a LATENT.
export function samplerOf(graph, chosen) {
  const samples = (node) =>
    node.inputs?.some((one) => one.name === "model" && one.type === "MODEL") && node.outputs?.some((one) => one.type === "LATENT");
  return chosen.find(samples) ?? graph.nodes.find((node) => samples(node) && node.mode === 0);
}

function loaderOf(graph, sae, node) {
  const found = graph.nodes.find((one) => one.comfyClass === "SAeUronLoader" && widget(one, "sae_name").value === sae);
  if (found) return found;
  const loader = LiteGraph.createNode("SAeUronLoader");
  loader.pos = free(graph, [node.pos[0] - loader.size[0] - 40, node.pos[1]], loader.size);
  graph.add(loader);
  set(loader, "sae_name", sae);
  return loader;
}

function free(graph, [x, y], [width, height]) {
  const overlaps = (node) =>
    node.pos[0] < x + width && x < node.pos[0] + node.size[0] && node.pos[1] - 30 < y + height && y - 30 < node.pos[1] + node.size[1];
  for (let tries = 0; tries < 100 && graph.nodes.some(overlaps); tries++) y += 40;
  return [x, y];
}

function middle() {
  const { width, height } = app.canvas.canvas.getBoundingClientRect();
  return app.canvas.convertCanvasToOffset?.([width / 2, height / 2]) ?? [0, 0];
}

// A card that is dragged onto the canvas is steered by there.
const KIND = "application/x-saeuron-latent";
let dragged = null;

export function drag(event, sae, cards, latent) {
  dragged = { sae, cards, latent };
  event.dataTransfer.setData(KIND, String(latent));
  event.dataTransfer.effectAllowed = "copy";
}

export function acceptDrops() {
  const canvas = app.canvas.canvas;
  const ours = (event) => dragged && event.dataTransfer?.types.includes(KIND);
  canvas.addEventListener("dragover", (event) => ours(event) && event.preventDefault(), true);
  canvas.addEventListener("drop", (event) => {
    if (!ours(event)) return;
    event.preventDefault();
    event.stopPropagation();
    const { sae, cards, latent } = dragged;
    dragged = null;
    app.canvas.deselectAll?.();
    actions.steer(sae, cards, latent, app.canvas.convertEventToCanvasOffset(event));
  }, true);
}

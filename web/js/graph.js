// What the pack's scripts ask of the graph: widgets by name, nodes by id, and what an input leads to.

import { app } from "../../../scripts/app.js";

export const widget = (node, name) => node?.widgets?.find((one) => one.name === name);

const root = () => app.rootGraph ?? app.graph.rootGraph ?? app.graph;
const linkOf = (graph, id) => graph.links?.get?.(id) ?? graph.links?.[id];

// The node of an id as the server has it: "12", or "12:3" for node 3 inside the subgraph that node 12 stands for.
export function nodeOf(id) {
  let node, graph = root();
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node;
}

// The node that stands for a subgraph, wherever it is.
function holder(subgraph, graph = root()) {
  for (const node of graph.nodes) {
    if (!node.subgraph) continue;
    const found = node.subgraph === subgraph ? node : holder(subgraph, node.subgraph);
    if (found) return found;
  }
}

// The node whose output reaches this input, looking through reroutes, and into subgraphs and out of them.
export function source(node, name) {
  let slot = node?.inputs?.findIndex((input) => input.name === name) ?? -1;
  while (node?.inputs?.[slot]) {
    const link = linkOf(node.graph, node.inputs[slot].link);
    if (!link) return null;
    let found = node.graph.getNodeById(link.origin_id);
    if (!found) {
      node = holder(node.graph);
      slot = link.origin_slot;
      continue;
    }
    let output = link.origin_slot;
    while (found?.subgraph) {
      const inner = linkOf(found.subgraph, found.subgraph.outputs[output]?.linkIds?.[0]);
      found = inner && found.subgraph.getNodeById(inner.origin_id);
      output = inner?.origin_slot;
    }
    if (found?.type !== "Reroute") return found;
    node = found;
    slot = 0;
  }
  return null;
}

// The SAE Loader that a node's SAE comes from, and the concepts, name → kind, that it is taught on the way.
export function loaderOf(node) {
  const learnt = {};
  let loader = source(node, "sae");
  while (loader?.comfyClass === "SAeUronLearnConcept") {
    learnt[widget(loader, "name").value.trim()] = widget(loader, "kind").value.trim();
    loader = source(loader, "sae");
  }
  return { loader: loader?.comfyClass === "SAeUronLoader" ? loader : null, learnt };
}

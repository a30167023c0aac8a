// A latent turned up and down from the same seed, drawn with the sampler of the graph that is open.

import { api } from "../../../../scripts/api.js";
import { app } from "../../../../scripts/app.js";
import { samplerOf } from "./graph.js";
import { tell } from "./server.js";

const WAIT = 500;

// The part of the graph that draws a picture, twice, each with a Feature Steer Patch of its own before the sampler.
async function workflow(sae, latent, amount) {
  const sampler = samplerOf(app.canvas.graph ?? app.graph, []);
  const { output } = await app.graphToPrompt();
  const of = sampler && output[sampler.id];
  const [, decode] = Object.entries(output).find(([, node]) => node.inputs.samples?.[0] === String(sampler?.id) && node.inputs.vae) ?? [];
  if (!of || !decode) throw new Error("Open a workflow with a sampler and a VAE Decode: the pair is drawn with it.");
  const [loader] = Object.entries(output).find(([, node]) => node.class_type === "SAeUronLoader" && node.inputs.sae_name === sae) ?? [];
  const found = { ...output };
  for (const node of Object.keys(found)) if (found[node]._meta && isOutput(found[node])) delete found[node];
  if (!loader) found.atlas_sae = { class_type: "SAeUronLoader", inputs: { sae_name: sae, hookpoint: "", site: "from file", concepts: "from file" } };
  for (const [name, sign] of [["up", "+"], ["down", "-"]]) {
    const steer = { model: of.inputs.model, sae: [loader ?? "atlas_sae", 0], latents: `${latent}: ${sign}${amount}`, scale: 1, add: 0, start_percent: 0, end_percent: 1, applies_to: "both" };
    found[`atlas_${name}_steer`] = { class_type: "SAeUronSteerPatch", inputs: steer };
    found[`atlas_${name}_sampler`] = { ...of, inputs: { ...of.inputs, model: [`atlas_${name}_steer`, 0] } };
    found[`atlas_${name}_decode`] = { ...decode, inputs: { ...decode.inputs, samples: [`atlas_${name}_sampler`, 0] } };
    found[`atlas_${name}`] = { class_type: "PreviewImage", inputs: { images: [`atlas_${name}_decode`, 0] } };
  }
  return found;
}

// Nodes that save or show would run too; those that nothing asks for do not.
const isOutput = (node) => app.graph.nodes.length && LiteGraph.registered_node_types[node.class_type]?.nodeData?.output_node;

export async function drawPair(sae, latent, amount) {
  const response = await api.fetchApi("/prompt", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ prompt: await workflow(sae, latent, amount) }),
  });
  const { prompt_id: number, error } = await response.json();
  if (!number) throw new Error(error?.message ?? "ComfyUI refused the pair's workflow.");
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, WAIT));
    const entry = (await (await api.fetchApi(`/history/${number}`)).json())[number];
    if (!entry?.status) continue;
    const shown = [entry.outputs.atlas_up, entry.outputs.atlas_down].map((one) => one?.images?.[0]);
    if (!shown.every(Boolean)) throw new Error("The pair could not be drawn: run the workflow itself, and see what it says.");
    const [up, down] = shown.map(({ filename, subfolder }) => ({ filename, subfolder }));
    return tell("pair", { sae, latent, up, down });
  }
}

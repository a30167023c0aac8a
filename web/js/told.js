// What a node has to say stands in a box under it: asked of the server while it is set up, and told by it later.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { loaderOf, nodeOf, widget } from "./graph.js";

const PLACEHOLDERS = {
  SAeUronLoader: "What the file holds.",
  SAeUronConceptSelector: "How the concepts are understood.",
  SAeUronAblatePatch: "After a run: what was found.",
  SAeUronLearnConcept: "After a run: how well it is learnt.",
  SAeUronActivationRecorder: "After a run: how much the folder holds.",
  SAeUronSaveSae: "After a run: what was written.",
};

function addBox(node, placeholder) {
  const { widget: box } = app.widgets.STRING(node, "contents", ["STRING", { multiline: true, placeholder }], app);
  box.label = placeholder;
  box.serialize = false;
  Object.assign(box.options, { serialize: false, read_only: true });
  box.element.readOnly = true;
  // Room for some lines; a saved workflow brings a size of its own.
  node.setSize([Math.max(node.size[0], 300), node.size[1] + 60]);
}

function tell(node, text) {
  const box = widget(node, "contents");
  if (box) box.value = text;
}

// What the server has to say of a file, or of somebody's text.
async function ask(path, query) {
  const response = await api.fetchApi(`/saeuron/${path}?${new URLSearchParams(query)}`);
  const { text, error } = await response.json();
  return text ?? `⚠ ${error}`;
}

const QUESTIONS = {
  SAeUronLoader(node) {
    const given = (name) => widget(node, name)?.value ?? "";
    const query = { hookpoint: given("hookpoint"), site: given("site"), concepts: given("concepts") };
    return ask("sae", { sae: given("sae_name"), ...query });
  },
  SAeUronConceptSelector(node) {
    const { loader, learnt } = loaderOf(node);
    const text = widget(node, "concepts").value;
    const table = widget(node, "table")?.value;
    const bare = widget(loader, "concepts")?.value === "none" && table === "from SAE file";
    if (!loader || bare || Object.keys(learnt).length || !text.trim()) return "";
    return ask("understood", { sae: widget(loader, "sae_name").value, text, table });
  },
};

// Ask anew whenever the node is changed, but not at every key.
function keepAsking(node, question) {
  let timer, latest = 0;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      if (!node.graph) return;
      const own = ++latest;
      const text = await Promise.resolve(question(node)).catch(() => "");
      if (own === latest) tell(node, text);
    }, 300);
  };
  const calls = node.widgets.map((one) => [one, "callback"]);
  for (const [owner, name] of [...calls, [node, "onConfigure"], [node, "onConnectionsChange"], [node, "onAdded"]]) {
    const before = owner[name];
    owner[name] = function () {
      later();
      return before?.apply(this, arguments);
    };
  }
  later();
}

api.addEventListener("saeuron.told", ({ detail }) => {
  tell(nodeOf(detail.node), detail.text);
  if (detail.warn)
    app.extensionManager.toast.add({ severity: "warn", summary: "SAeUron", detail: detail.text, life: 12000 });
});

// Newer front ends say "rejected the value" in their toast, and the sentence in a panel only: it is shown here too.
api.addEventListener("promptQueueing", () => {
  const before = app.lastNodeErrors;
  let left = 40;
  const timer = setInterval(() => {
    const errors = app.lastNodeErrors;
    const refused = errors && errors !== before && Object.keys(errors).length;
    if (!refused && --left > 0) return;
    clearInterval(timer);
    for (const [id, { class_type, errors: found }] of Object.entries((refused && errors) || {})) {
      const detail = found[0].details.split(" - ").slice(1).join(" - ");
      if (!class_type.startsWith("SAeUron") || !detail) continue;
      const node = nodeOf(id);
      tell(node, `⚠ ${detail}`);
      app.extensionManager.toast.add({ severity: "error", summary: node?.title ?? "SAeUron", detail, life: 15000 });
    }
  }, 250);
});

app.registerExtension({
  name: "SAeUron.Told",
  nodeCreated(node) {
    if (node.comfyClass === "SAeUronTinyCanvas") {
      // Workflows from before its two inputs meant one picture, as small as it is drawn.
      const configure = node.onConfigure;
      node.onConfigure = function (saved) {
        configure?.apply(this, arguments);
        if (!saved.widgets_values?.length) for (const one of this.widgets ?? []) one.value = 1;
      };
    }
    const placeholder = PLACEHOLDERS[node.comfyClass];
    if (placeholder === undefined) return;
    const question = QUESTIONS[node.comfyClass];
    if (question) keepAsking(node, question);
    addBox(node, placeholder);
    const onExecuted = node.onExecuted;
    node.onExecuted = function (message) {
      onExecuted?.apply(this, arguments);
      const said = message.told?.flat() ?? message.text;
      if (said) tell(node, said.join("\n"));
    };
  },
});

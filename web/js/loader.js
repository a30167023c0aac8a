// SAE Loader, Learn Concept, Save SAE: what they say once they have run stands under the node.

import { app } from "../../../scripts/app.js";
import { ComfyWidgets } from "../../../scripts/widgets.js";

const PLACEHOLDERS = {
  SAeUronLoader: "Run once to see what the file holds.",
  SAeUronLearnConcept: "Run once to see how well it is learnt.",
  SAeUronSaveSae: "Run once to see what was written.",
};

app.registerExtension({
  name: "SAeUron.Loader",
  nodeCreated(node) {
    const placeholder = PLACEHOLDERS[node.comfyClass];
    if (placeholder === undefined) return;
    const options = { multiline: true, placeholder };
    const { widget } = ComfyWidgets.STRING(node, "contents", ["STRING", options], app);
    widget.serialize = false;
    Object.assign(widget.options, { serialize: false, read_only: true });
    widget.element.readOnly = true;

    const onExecuted = node.onExecuted;
    node.onExecuted = function (message) {
      onExecuted?.apply(this, arguments);
      if (message.text) widget.value = message.text.join("\n");
    };
  },
});

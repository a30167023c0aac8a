// SAE Loader: shows under the node what the file holds, once it has been loaded.

import { app } from "../../../scripts/app.js";
import { ComfyWidgets } from "../../../scripts/widgets.js";

app.registerExtension({
  name: "SAeUron.Loader",
  nodeCreated(node) {
    if (node.comfyClass !== "SAeUronLoader") return;
    const options = { multiline: true, placeholder: "Run once to see what the file holds." };
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

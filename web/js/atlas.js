// The atlas: a sidebar tab to look at an SAE's latents, to search them, and to take them into the graph.

import { app } from "../../../scripts/app.js";
import { acceptDrops } from "./atlas/graph.js";
import { Panel } from "./atlas/panel.js";

let panel = null;

app.registerExtension({
  name: "SAeUron.Atlas",
  setup() {
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = new URL("./atlas/style.css", import.meta.url).href;
    document.head.append(style);
    acceptDrops();
    app.extensionManager.registerSidebarTab({
      id: "saeuron-atlas",
      icon: "pi pi-map",
      title: "Atlas",
      tooltip: "Atlas: what the latents of an SAE mean",
      type: "custom",
      render(element) {
        panel ??= new Panel();
        element.style.height = "100%";
        element.replaceChildren(panel.root);
        panel.begin();
      },
    });
  },
});

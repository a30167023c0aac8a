// The panel: an SAE, a question, a grid of its latents, and one of them opened.

import { app } from "../../../../scripts/app.js";
import { Brush } from "./brush.js";
import { Card } from "./card.js";
import { h } from "./dom.js";
import { actions, drag } from "./graph.js";
import { Grid } from "./grid.js";
import { find, FILTERS, prepare, SORTS } from "./search.js";
import { ask } from "./server.js";

const LAST = "saeuron-atlas"; // under which the browser remembers the SAE that was looked at last

const guarded = (work) => async (...given) => {
  try {
    return await work(...given);
  } catch (error) {
    app.extensionManager.toast.add({ severity: "warn", summary: "Atlas", detail: error.message, life: 6000 });
  }
};

export class Panel {
  constructor() {
    const select = (label, names) =>
      h("select", { ariaLabel: label, title: label, onchange: () => this.search() }, names.map((name) => h("option", {}, name)));
    const act = (name) => [name, guarded((latent) => actions[name](this.sae, this.cards, latent))];
    const carry = (event, latent) => drag(event, this.sae, this.cards, latent);
    const open = guarded((latent) => this.open(latent));
    this.choice = h("select", { ariaLabel: "SAE", title: "SAE", onchange: guarded(() => this.load(this.choice.value)) });
    this.question = h("input", { type: "search", placeholder: "search: neon, 407, …", ariaLabel: "search", oninput: () => this.search() });
    this.sort = select("order", Object.keys(SORTS));
    this.filter = select("filter", Object.keys(FILTERS));
    this.filter.value = "alive";
    this.told = h("small", { className: "quiet", role: "status" });
    this.grid = new Grid(open, carry);
    this.brush = new Brush((latents) => this.search(latents), () => this.search(null));
    this.card = new Card({
      actions: Object.fromEntries(Object.keys(actions).map(act)),
      open,
      close: () => this.back(),
      labelled: () => this.grid.refresh(),
      drag: carry,
      guarded,
    });
    const seen = guarded(() => this.brush.open(this.sae));
    this.list = h(
      "div",
      { className: "saeuron-list" },
      h("div", { className: "bar" }, this.choice, h("button", { title: "Search by a picture that a probe saw", ariaLabel: "search by picture", onclick: seen }, h("i", { className: "pi pi-image" }))),
      this.question,
      h("div", { className: "bar" }, this.sort, this.filter),
      this.brush.root,
      this.told,
      this.grid.root,
    );
    this.root = h("div", { className: "saeuron-atlas" }, this.list, this.card.root);
    this.question.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key !== "ArrowDown" && event.key !== "Enter") return;
      event.preventDefault();
      this.grid.root.focus();
      this.grid.choose(0, event.key === "Enter");
    });
    this.order = null;
    this.begin = guarded(() => this.start());
  }

  async start() {
    const { saes } = await ask("saes");
    const names = Object.keys(saes).sort((one, other) => saes[other] - saes[one]);
    const option = (name) => h("option", { value: name, disabled: !saes[name] }, saes[name] ? name : `${name} (no atlas)`);
    this.choice.replaceChildren(...names.map(option));
    const last = this.sae ?? localStorage.getItem(LAST);
    const first = saes[last] ? last : names.find((name) => saes[name]);
    if (!first) {
      this.told.textContent = "No SAE has an atlas yet: build one with `training atlas`, or with the node Atlas Recorder.";
      return;
    }
    this.choice.value = first;
    await this.load(first);
  }

  async load(sae) {
    const cards = prepare(await ask("cards", { sae }));
    Object.assign(this, { sae, cards });
    localStorage.setItem(LAST, sae);
    this.back();
    this.search(null);
  }

  search(order = this.order) {
    this.order = order;
    if (!this.cards) return;
    const began = performance.now();
    const asked = { text: this.question.value, sort: this.sort.value, filter: this.filter.value, order };
    const found = find(this.cards, asked);
    this.took = performance.now() - began;
    this.told.textContent = `${found.length} of ${this.cards.latents} latents, ${this.cards.pictures} pictures${order ? "; by picture" : ""}`;
    this.grid.show(this.sae, this.cards, found);
  }

  async open(latent) {
    this.list.hidden = true;
    await this.card.show(this.sae, this.cards, latent);
  }

  back() {
    const was = this.list.hidden;
    this.card.hide();
    this.list.hidden = false;
    if (!was) return;
    this.grid.draw();
    this.grid.root.focus();
  }
}

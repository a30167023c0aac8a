// One latent, opened: its pictures, words, curve, neighbours and label, and what to do with it.

import { h, percent, svg } from "./dom.js";
import { cropUrl, title } from "./grid.js";
import { round } from "./graph.js";
import { drawPair } from "./pair.js";
import { ask, pictureUrl, tell } from "./server.js";

const ACTIONS = {
  steer: "Put a Feature Steer Patch for this latent into the graph (or add it to the selected one)",
  remove: "Turn this latent over: what it stands for goes, and some of the picture goes with it",
  watch: "Put a Feature Probe for this latent into the graph",
};

export class Card {
  // `actions` are functions of a latent by name; `open(latent)` shows another; `close()` goes back to the grid.
  // `guarded(work)` is work whose errors the user is told.
  constructor({ actions, open, close, labelled, drag, guarded }) {
    Object.assign(this, { actions, open, close, labelled, drag, guarded });
    this.root = h("div", { className: "saeuron-open", hidden: true, tabIndex: -1 });
    this.root.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return; // ComfyUI's own, such as Control+Enter
      if (event.key !== "Escape" && event.target.matches("input")) return;
      const key = { Escape: close, s: () => actions.steer(this.latent), r: () => actions.remove(this.latent), w: () => actions.watch(this.latent) }[event.key];
      if (!key) return;
      event.preventDefault();
      event.stopPropagation();
      key();
    });
  }

  async show(sae, cards, latent) {
    Object.assign(this, { sae, cards, latent });
    this.root.hidden = false;
    this.root.replaceChildren(this.head(), this.buttons(), h("p", { className: "quiet" }, "…"));
    this.root.scrollTop = 0;
    this.root.focus({ preventScroll: true });
    const about = await ask("latent", { sae, latent });
    if (this.latent !== latent || this.root.hidden) return;
    this.root.replaceChildren(
      this.head(),
      this.buttons(about.concept),
      this.crops(about.pictures),
      this.words(),
      this.facts(about),
      curve(about.curve),
      this.pair(about.pair),
      this.neighbours(),
    );
  }

  hide() {
    this.root.hidden = true;
    this.latent = null;
  }

  head() {
    const label = this.cards.labels[this.latent];
    const by = label ? [label.by, label.faithfulness === undefined ? null : `tells ${percent(label.faithfulness)} rightly`] : [];
    return h(
      "header",
      { draggable: true, ondragstart: (event) => this.drag(event, this.latent) },
      h("button", { className: "plain", title: "Back (Esc)", ariaLabel: "back", onclick: () => this.close() }, "←"),
      h("strong", {}, `${this.latent}`),
      h("input", {
        type: "text",
        maxLength: 200,
        value: label?.text ?? "",
        placeholder: title(this.cards, this.latent),
        ariaLabel: "label",
        title: "Its label: write what it stands for",
        onkeydown: (event) => event.key === "Enter" && event.target.blur(),
        onchange: this.guarded((event) => this.label(event.target.value)),
      }),
      h("small", { className: "quiet" }, by.filter(Boolean).join(", ")),
    );
  }

  async label(text) {
    const { labels } = await tell("label", { sae: this.sae, latent: this.latent, text });
    this.cards.labels = labels;
    this.labelled();
  }

  buttons(concept = "") {
    const known = `Take the concept ${concept} out, by Concept Selector and Feature Ablate Patch`;
    const about = { ...ACTIONS, ...(concept && { remove: known }) };
    const button = (name) =>
      h("button", { title: `${about[name]} (${name[0]})`, onclick: () => this.actions[name](this.latent) }, name);
    return h("div", { className: "buttons" }, Object.keys(ACTIONS).map(button));
  }

  crops(pictures) {
    if (!pictures.length) return h("p", { className: "quiet" }, "It never fired.");
    const image = (picture, rank) => {
      const url = (more) => cropUrl(this.sae, this.cards, this.latent, rank, { side: 128, ...more });
      const shown = h("img", { src: url({ close: 1 }), title: picture.prompt, alt: picture.prompt, loading: "lazy", draggable: false });
      shown.addEventListener("pointerenter", () => (shown.src = url({ heat: 0 })));
      shown.addEventListener("pointerleave", () => (shown.src = url({ close: 1 })));
      return shown;
    };
    return h("div", { className: "crops" }, pictures.map(image));
  }

  words() {
    const words = this.cards.words[this.latent].split(" ").filter(Boolean);
    const odds = this.cards.odds[this.latent].split(" ").map(Number);
    if (!words.length) return h("p", { className: "quiet" }, "No word of the prompts is its own.");
    const word = (text, place) => h("span", { className: "word", title: `${odds[place]} standard deviations more often` }, text);
    return h("p", {}, words.map(word));
  }

  facts(about) {
    const { cards, latent } = this;
    const facts = [
      ["fires on", `${percent(cards.frequency[latent])} of all places, in ${cards.shown[latent]} of ${cards.pictures} pictures`],
      ["covers", `${percent(cards.area[latent])} of those pictures`],
      ["peak", `${cards.peak[latent].toPrecision(3)}`],
    ];
    if (about.concepts.length)
      facts.push(["scores for", about.concepts.map(({ concept, score }) => `${concept} ${score}`).join(", ")]);
    return h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  }

  // Drawn when asked for, with the graph that is open, and kept.
  pair(kept) {
    const shown = h("div", { className: "pair" });
    const latent = this.latent;
    const image = (side) => {
      const src = pictureUrl("pair", { sae: this.sae, latent, side, at: kept });
      return h("figure", {}, h("img", { src, alt: `turned ${side}` }), h("figcaption", { className: "quiet" }, `turned ${side}`));
    };
    const show = () => shown.replaceChildren(...(kept ? [image("down"), image("up")] : []));
    const ask = h("button", { onclick: () => work() }, kept ? "draw the pair anew" : "draw it turned up and down");
    const work = this.guarded(async () => {
      ask.disabled = true;
      try {
        kept = (await drawPair(this.sae, latent, round(this.cards.peak[latent]))).pair;
        show();
      } finally {
        ask.disabled = false;
      }
    });
    show();
    return h("section", {}, shown, ask);
  }

  neighbours() {
    const others = this.cards.neighbours[this.latent] ?? [];
    if (!others.length) return null;
    const other = (latent) =>
      h(
        "button",
        { className: "neighbour", title: title(this.cards, latent), onclick: () => this.open(latent) },
        this.cards.crops[latent] ? h("img", { src: cropUrl(this.sae, this.cards, latent, 0, { side: 64 }), alt: "" }) : "",
        h("span", {}, `${latent} ${title(this.cards, latent)}`),
      );
    return h("section", {}, h("h4", {}, "Fires with it"), h("div", { className: "neighbours" }, others.map(other)));
  }
}

function curve(values) {
  const top = Math.max(...values) || 1;
  const points = values.map((value, bin) => [196 - ((bin + 0.5) * 196) / values.length + 2, 46 - (44 * value) / top]);
  const line = svg("polyline", { points: points.map((point) => point.map((x) => x.toFixed(1)).join(",")).join(" ") });
  return h(
    "figure",
    {},
    svg("svg", { viewBox: "0 0 200 48", role: "img", "aria-label": "activation over the sampling" }, line),
    h("figcaption", { className: "quiet" }, h("span", {}, "begin"), h("span", {}, "activation over the sampling"), h("span", {}, "end")),
  );
}

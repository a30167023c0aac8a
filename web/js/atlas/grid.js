// A grid of cards that holds only what is seen: as many elements as fit on the screen, whatever there is to scroll over.

import { h, percent } from "./dom.js";
import { pictureUrl } from "./server.js";

export const CARD = { width: 104, height: 144, side: 92 };
const SETTLED = 60; // milliseconds after which pictures are asked for of what is still there

export class Grid {
  // `open(latent)` is called when a card is chosen, `drag(event, latent)` when one is taken along.
  constructor(open, drag) {
    this.shelf = h("div", { className: "saeuron-shelf" });
    this.root = h(
      "div",
      { className: "saeuron-grid", tabIndex: 0, role: "listbox", ariaLabel: "latents", onscroll: () => this.draw() },
      this.shelf,
    );
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.root.addEventListener("click", (event) => {
      const card = event.target.closest("[data-latent]");
      if (card) this.choose(Number(card.dataset.place), true);
    });
    this.root.addEventListener("dragstart", (event) => {
      const card = event.target.closest("[data-latent]");
      if (card) drag(event, Number(card.dataset.latent));
    });
    Object.assign(this, { open, found: [], chosen: 0, cards: null, sae: "", used: new Map(), spare: [] });
    this.watcher = new ResizeObserver(() => this.draw());
    this.watcher.observe(this.root);
  }

  get across() {
    return Math.max(1, Math.floor(this.root.clientWidth / CARD.width));
  }

  show(sae, cards, found) {
    Object.assign(this, { sae, cards, found, chosen: 0 });
    this.root.scrollTop = 0;
    this.drop(() => true);
    this.draw();
  }

  // What cards say has changed; where the grid stands has not.
  refresh() {
    this.drop(() => true);
    this.draw();
  }

  drop(which) {
    for (const [place, element] of this.used)
      if (which(place)) {
        this.used.delete(place);
        element.remove();
        if (this.spare.length < 64) this.spare.push(element);
      }
  }

  draw() {
    if (!this.cards || !this.root.clientHeight) return;
    const across = this.across;
    this.shelf.style.height = `${Math.ceil(this.found.length / across) * CARD.height}px`;
    const first = Math.max(0, Math.floor(this.root.scrollTop / CARD.height) - 1) * across;
    const rows = Math.ceil(this.root.clientHeight / CARD.height) + 3;
    const last = Math.min(this.found.length, first + rows * across);
    this.drop((place) => place < first || place >= last);
    for (let place = first; place < last; place++) {
      if (!this.used.has(place)) this.used.set(place, this.fill(this.spare.pop() ?? blank(), place));
      const element = this.used.get(place);
      const [left, top] = [(place % across) * CARD.width, Math.floor(place / across) * CARD.height];
      element.style.transform = `translate(${left}px, ${top}px)`;
      element.classList.toggle("chosen", place === this.chosen);
      element.ariaSelected = place === this.chosen;
    }
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.load(), SETTLED);
  }

  fill(element, place) {
    const { cards } = this;
    const latent = this.found[place];
    const [image, number, name, rate] = element.children;
    element.dataset.latent = latent;
    element.dataset.place = place;
    image.removeAttribute("src");
    image.alt = "";
    number.textContent = latent;
    name.textContent = title(cards, latent);
    name.classList.toggle("named", Boolean(cards.labels[latent]));
    rate.textContent = cards.isDead[latent] ? "dead" : `${percent(cards.frequency[latent])}${cards.isDense[latent] ? ", dense" : ""}`;
    element.classList.toggle("dead", Boolean(cards.isDead[latent]));
    this.shelf.append(element);
    return element;
  }

  load() {
    for (const element of this.used.values()) {
      const image = element.firstChild;
      const latent = element.dataset.latent;
      if (image.hasAttribute("src") || !this.cards.crops[latent]) continue;
      image.src = cropUrl(this.sae, this.cards, latent, 0, { side: CARD.side });
    }
  }

  choose(place, open = false) {
    if (!this.found.length) return;
    this.chosen = Math.min(Math.max(place, 0), this.found.length - 1);
    const top = Math.floor(this.chosen / this.across) * CARD.height;
    const { scrollTop, clientHeight } = this.root;
    if (top < scrollTop) this.root.scrollTop = top;
    if (top + CARD.height > scrollTop + clientHeight) this.root.scrollTop = top + CARD.height - clientHeight;
    this.draw();
    if (open) this.open(this.found[this.chosen]);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // ComfyUI's own, such as Control+Enter
    const page = this.across * Math.max(1, Math.floor(this.root.clientHeight / CARD.height));
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.across, ArrowDown: this.across, PageUp: -page, PageDown: page };
    if (event.key in steps) this.choose(this.chosen + steps[event.key]);
    else if (event.key === "Home") this.choose(0);
    else if (event.key === "End") this.choose(this.found.length - 1);
    else if (event.key === "Enter" || event.key === " ") this.choose(this.chosen, true);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

function blank() {
  return h(
    "div",
    { className: "saeuron-card", role: "option", draggable: true },
    h("img", { draggable: false, decoding: "async", width: CARD.side, height: CARD.side }),
    h("span", { className: "number" }),
    h("span", { className: "name" }),
    h("span", { className: "rate" }),
  );
}

export function title(cards, latent) {
  return cards.labels[latent]?.text || cards.words[latent].split(" ").slice(0, 3).join(" ") || "—";
}

// `pictures` is in the address only so that the browser asks anew once the atlas has grown.
export const cropUrl = (sae, cards, latent, rank, more = {}) =>
  pictureUrl("crop", { sae, latent, rank, pictures: cards.pictures, ...more });

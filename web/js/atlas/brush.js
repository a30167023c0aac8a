// Search by picture: a picture that a probe saw, painted over where the thing is.

import { h } from "./dom.js";
import { ask, pictureUrl, tell } from "./server.js";

const PLACES = 32; // a side of the brush as it is sent

export class Brush {
  // `found(latents)` is called with what fires in the brush and not elsewhere, `left()` when the picture is put away.
  constructor(found, left) {
    this.found = found;
    this.strip = h("div", { className: "strip" });
    this.canvas = h("canvas", { width: 256, height: 256, ariaLabel: "paint where the thing is" });
    this.context = this.canvas.getContext("2d");
    this.size = h("input", { type: "range", min: 2, max: 20, value: 6, ariaLabel: "size of the brush" });
    const paint = h(
      "div",
      { className: "paint", hidden: true },
      this.canvas,
      h(
        "div",
        { className: "buttons" },
        this.size,
        h("button", { onclick: () => this.fill() }, "all of it"),
        h("button", { onclick: () => this.clear() }, "clear"),
        h("button", { onclick: () => this.leave(left) }, "done"),
      ),
    );
    this.paint = paint;
    this.root = h("div", { className: "saeuron-brush", hidden: true }, this.strip, paint);
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      this.dab(event);
    });
    this.canvas.addEventListener("pointermove", (event) => event.buttons && this.dab(event));
    this.canvas.addEventListener("pointerup", () => this.search());
  }

  async open(sae) {
    this.sae = sae;
    this.root.hidden = false;
    const { seen } = await ask("seen");
    const own = seen.filter((one) => one.sae === sae);
    const button = ({ number }) =>
      h("button", { className: "plain", ariaLabel: `picture ${number}`, onclick: () => this.choose(number) }, h("img", { src: pictureUrl("seen", { picture: number }), alt: "" }));
    this.strip.replaceChildren(
      ...(own.length ? own.map(button) : [h("p", { className: "quiet" }, "Feature Map shows pictures that a Feature Probe saw; once it has run, they are offered here.")]),
    );
    if (own.length) this.choose(own[0].number);
    else this.paint.hidden = true;
  }

  choose(number) {
    this.number = number;
    this.paint.hidden = false;
    this.image = new Image();
    this.image.onload = () => this.clear();
    this.image.src = pictureUrl("seen", { picture: number });
  }

  clear() {
    const { naturalWidth: width, naturalHeight: height } = this.image;
    const scale = 256 / Math.max(width, height);
    Object.assign(this.canvas, { width: Math.round(width * scale), height: Math.round(height * scale) });
    this.marks = new Float32Array(PLACES * PLACES);
    this.draw();
  }

  fill() {
    this.marks.fill(1);
    this.draw();
    this.search();
  }

  dab(event) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [((event.clientX - box.left) / box.width) * PLACES, ((event.clientY - box.top) / box.height) * PLACES];
    const radius = Number(this.size.value) / 2;
    for (let row = 0; row < PLACES; row++)
      for (let column = 0; column < PLACES; column++)
        if (Math.hypot(row + 0.5 - y, column + 0.5 - x) <= radius) this.marks[row * PLACES + column] = 1;
    this.draw();
  }

  draw() {
    const { context, canvas } = this;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.image, 0, 0, canvas.width, canvas.height);
    context.fillStyle = "rgba(80, 200, 255, 0.55)";
    const [width, height] = [canvas.width / PLACES, canvas.height / PLACES];
    this.marks.forEach((mark, place) => {
      if (mark) context.fillRect((place % PLACES) * width, Math.floor(place / PLACES) * height, width, height);
    });
  }

  async search() {
    const rows = Array.from({ length: PLACES }, (_, row) => [...this.marks.slice(row * PLACES, (row + 1) * PLACES)]);
    if (!this.marks.some(Boolean)) return;
    const { latents } = await tell("brush", { sae: this.sae, picture: this.number, brush: rows });
    this.found(latents);
  }

  leave(left) {
    this.root.hidden = true;
    left();
  }
}

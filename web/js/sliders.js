// Feature Steer Patch: under the node a slider for each latent whose text says what is done with it. What is saved is the
// text; latents of which it says nothing are turned as the node's own widgets have it, and have no slider.

import { app } from "../../../scripts/app.js";
import { h } from "./atlas/dom.js";
import { WIDTH } from "./atlas/graph.js";

const SETTING = /^(off|[+-]\d+(\.\d+)?|[x×]-?\d+(\.\d+)?|\d+(\.\d+)?[-–]\d+(\.\d+)?%)$/;

export function read(text) {
  const entries = text.split(/[,;\n]/).map((part) => part.trim()).filter(Boolean);
  return entries.map((entry) => {
    const [name, said = ""] = entry.split(/:(.*)/s);
    const words = said.trim().split(/\s+/).filter(Boolean);
    const own = { name: name.trim(), add: null, scale: null, part: null, on: true, known: words.every((word) => SETTING.test(word)) };
    for (const word of words) {
      if (word === "off") own.on = false;
      else if (/^[+-]/.test(word)) own.add = Number(word);
      else if (/^[x×]/.test(word)) own.scale = Number(word.slice(1));
      else own.part = word;
    }
    return own;
  });
}

const says = (own) => own.add !== null || own.scale !== null || own.part || !own.on;

export function write(entries) {
  const signed = (value) => (value < 0 ? `${value}` : `+${value}`);
  const line = (own) =>
    [
      `${own.name}:`,
      own.add === null ? "" : signed(own.add),
      own.scale === null ? "" : `x${own.scale}`,
      own.part ?? "",
      own.on ? "" : "off",
    ].filter(Boolean).join(" ");
  return entries.map((own) => (says(own) ? line(own) : own.name)).join("; ");
}

function row(own, changed, remove) {
  const scaled = own.scale !== null && own.add === null;
  const value = scaled ? own.scale : (own.add ?? 0);
  const reach = Math.max(scaled ? 4 : 20, 2 * Math.abs(value));
  const number = h("input", { type: "number", value, step: "any", ariaLabel: `amount of ${own.name}` });
  const slider = h("input", { type: "range", min: -reach, max: reach, step: scaled ? 0.05 : reach / 200, value, ariaLabel: `slider of ${own.name}` });
  const take = (event) => {
    const given = Number(event.target.value);
    if (!Number.isFinite(given)) return;
    own[scaled ? "scale" : "add"] = Number(given.toFixed(3));
    slider.value = number.value = given;
    changed();
  };
  slider.addEventListener("input", take);
  number.addEventListener("change", take);
  const part = h("input", {
    type: "text",
    value: own.part ?? "",
    placeholder: "0-100%",
    title: "The part of the sampling",
    ariaLabel: `part of ${own.name}`,
    onchange: (event) => {
      const given = event.target.value.trim().replace("–", "-");
      const written = /%$/.test(given) || !given ? given : `${given}%`;
      if (written && !SETTING.test(written)) return void (event.target.value = own.part ?? "");
      own.part = written || null;
      event.target.value = written;
      changed();
    },
  });
  const on = h("input", {
    type: "checkbox",
    checked: own.on,
    title: "On or off",
    ariaLabel: `${own.name} on`,
    onchange: (event) => {
      own.on = event.target.checked;
      changed();
    },
  });
  const name = h("span", { title: own.name }, own.name);
  return h("div", { className: "saeuron-slider" }, on, name, h("small", {}, scaled ? "×" : "+"), slider, number, part, h("button", { title: "Take it out", ariaLabel: `take ${own.name} out`, onclick: remove }, "×"));
}

app.registerExtension({
  name: "SAeUron.Sliders",
  nodeCreated(node) {
    if (node.comfyClass !== "SAeUronSteerPatch") return;
    const text = node.widgets.find((one) => one.name === "latents");
    const root = h("div", { className: "saeuron-sliders" });
    // Each row, and the margin that ComfyUI leaves around what is no widget of its own.
    const height = () => root.childElementCount && 30 * root.childElementCount + 20;
    const widget = node.addDOMWidget("sliders", "saeuron-sliders", root, {
      serialize: false,
      getMinHeight: height,
      getMaxHeight: height,
    });
    widget.serialize = false;
    let shown = null;
    const draw = () => {
      shown = text.value;
      const entries = read(shown);
      const changed = () => {
        shown = text.value = write(entries);
        text.callback?.(text.value);
        node.setDirtyCanvas?.(true, true);
      };
      const rows = entries.map((own, place) =>
        row(own, changed, () => {
          entries.splice(place, 1);
          changed();
          draw();
        }),
      );
      const before = height();
      root.replaceChildren(...(entries.every((own) => own.known) ? rows.filter((_, place) => says(entries[place])) : []));
      const grown = height() - before;
      if (grown) node.setSize([Math.max(node.size[0], WIDTH), Math.max(node.size[1] + grown, node.computeSize()[1])]);
    };
    // The text may be written by hand, by a workflow that is loaded or by the atlas.
    const callback = text.callback;
    text.callback = function () {
      callback?.apply(this, arguments);
      if (text.value !== shown) draw();
    };
    const onConfigure = node.onConfigure;
    node.onConfigure = function () {
      onConfigure?.apply(this, arguments);
      draw();
    };
    draw();
  },
});

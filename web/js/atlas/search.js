// Which latents to show, and in which order: by word, by what is filtered, by how they are sorted. No page is needed.

export const SORTS = {
  "best first": null,
  "fires most": (cards, i) => -cards.frequency[i],
  "fires least": (cards, i) => cards.frequency[i] || Infinity,
  "early in the sampling": (cards, i) => (cards.frequency[i] ? -cards.timestep[i] : Infinity),
  "late in the sampling": (cards, i) => (cards.frequency[i] ? cards.timestep[i] : Infinity),
  "number": (cards, i) => i,
};

export const FILTERS = {
  "all": () => true,
  "alive": (cards, i) => !cards.isDead[i],
  "labelled": (cards, i) => Boolean(cards.labels[i]),
  "sparse": (cards, i) => !cards.isDead[i] && !cards.isDense[i],
  "dense": (cards, i) => cards.isDense[i],
  "dead": (cards, i) => cards.isDead[i],
};

const normal = (text) => text.toLowerCase().normalize("NFKD").replace(/\p{M}/gu, "");

// Decoder rows have length 1, so that an activation is how much of a token the latent makes: of two latents with the same
// word the stronger one carries more of the thing.
const weight = (peak) => Math.sqrt(peak);

// The columns as the server gives them, with what a search looks up in them: word → latents, and how much it says of each.
export function prepare(cards) {
  const count = cards.latents;
  const marked = (latents) => {
    const marks = new Uint8Array(count);
    for (const latent of latents) marks[latent] = 1;
    return marks;
  };
  const index = new Map();
  const clear = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    if (!cards.words[i]) continue;
    const odds = cards.odds[i].split(" ");
    clear[i] = odds[0] * weight(cards.peak[i]);
    cards.words[i].split(" ").forEach((text, place) => {
      const word = normal(text);
      if (!index.has(word)) index.set(word, { latents: [], values: [] });
      const entry = index.get(word);
      entry.latents.push(i);
      // A word that is further down a latent's list says less of it than the one at the top.
      entry.values.push((odds[place] * weight(cards.peak[i])) / (1 + place / 2));
    });
  }
  return {
    ...cards,
    frequency: Float32Array.from(cards.frequency),
    area: Float32Array.from(cards.area),
    peak: Float32Array.from(cards.peak),
    timestep: Uint16Array.from(cards.timestep),
    shown: Uint32Array.from(cards.shown),
    crops: Uint8Array.from(cards.crops),
    isDead: marked(cards.dead),
    isDense: marked(cards.dense),
    index,
    clear,
  };
}

// How well every latent answers one word: its label first, then the words of its prompts.
function fits(cards, word) {
  const found = new Float32Array(cards.latents);
  for (const [own, { latents, values }] of cards.index) {
    if (!own.startsWith(word)) continue;
    const factor = own === word ? 10 : 1;
    latents.forEach((latent, place) => (found[latent] = Math.max(found[latent], factor * values[place])));
  }
  for (const [latent, { text }] of Object.entries(cards.labels)) {
    const label = normal(text);
    const value = label === word ? 3000 : label.split(/\s+/).includes(word) ? 2000 : label.includes(word) ? 1000 : 0;
    found[latent] = Math.max(found[latent], value);
  }
  return found;
}

// Numbers of latents. `order` is given where a picture was searched by: only these, in this order.
export function find(cards, { text = "", sort = "best first", filter = "all", order = null } = {}) {
  const wanted = normal(text).split(/[\s,]+/).filter(Boolean);
  const keep = FILTERS[filter];
  const each = wanted.map((word) => fits(cards, word));
  const found = [];
  const score = new Float32Array(cards.latents);
  for (const i of order ?? Array(cards.latents).keys()) {
    if (!keep(cards, i)) continue;
    if (wanted.length) {
      if (each.every((fit) => fit[i])) score[i] = each.reduce((sum, fit) => sum + fit[i], 0);
      if (wanted.length === 1 && String(i) === wanted[0]) score[i] = 1e6;
      if (!score[i]) continue;
    }
    found.push(i);
  }
  const by = SORTS[sort];
  if (by) {
    const keys = new Float64Array(cards.latents);
    for (const i of found) keys[i] = by(cards, i);
    found.sort((a, b) => keys[a] - keys[b] || a - b);
  } else if (wanted.length) found.sort((a, b) => score[b] - score[a] || a - b);
  else if (!order) {
    // Without a question: what says most comes first, which is neither what never fires nor what always does.
    const rank = (i) => (cards.isDead[i] ? 2 : cards.isDense[i] ? 1 : 0);
    found.sort((a, b) => rank(a) - rank(b) || cards.clear[b] - cards.clear[a] || a - b);
  }
  return found;
}

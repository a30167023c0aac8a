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

// The columns as the server gives them, with what a search looks up in them.
export function prepare(cards) {
  const count = cards.latents;
  const marked = (latents) => {
    const marks = new Uint8Array(count);
    for (const latent of latents) marks[latent] = 1;
    return marks;
  };
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
  };
}

// Decoder rows have length 1, so that an activation is how much of a token the latent makes: of two latents with the same
// word the stronger one carries more of the thing.
const weight = (cards, i) => Math.sqrt(cards.peak[i]);

// How well latent `i` answers one word: its label first, then the words of its prompts by their odds.
function fit(cards, i, word) {
  const label = cards.labels[i] ? normal(cards.labels[i].text) : "";
  let best = 0;
  if (label) best = label === word ? 1000 : label.split(/\s+/).includes(word) ? 500 : label.includes(word) ? 200 : 0;
  const words = cards.words[i];
  if (!words.includes(word)) return best;
  const odds = cards.odds[i].split(" ");
  words.split(" ").forEach((own, place) => {
    // A word that is further down a latent's list says less of it than the one at the top.
    const value = (odds[place] * weight(cards, i)) / (1 + place / 2);
    if (own === word) best = Math.max(best, 10 * value);
    else if (own.startsWith(word)) best = Math.max(best, value);
  });
  return best;
}

// Numbers of latents. `order` is given where a picture was searched by: only these, in this order.
export function find(cards, { text = "", sort = "best first", filter = "all", order = null } = {}) {
  const wanted = normal(text).split(/[\s,]+/).filter(Boolean);
  const keep = FILTERS[filter];
  let found = [];
  const score = new Float32Array(cards.latents);
  for (const i of order ?? Array(cards.latents).keys()) {
    if (!keep(cards, i)) continue;
    if (wanted.length) {
      const number = wanted.length === 1 && String(i) === wanted[0] ? 1e6 : 0;
      const fits = wanted.map((word) => fit(cards, i, word));
      score[i] = number || (fits.every(Boolean) ? fits.reduce((sum, one) => sum + one) : 0);
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
    const clear = Float32Array.from(cards.odds, (odds, i) => (parseFloat(odds) || 0) * weight(cards, i));
    found.sort((a, b) => rank(a) - rank(b) || clear[b] - clear[a] || a - b);
  }
  return found;
}

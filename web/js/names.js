// The text of Concept Selector: names in a list, each perhaps with numbers of its own.

const nameIn = (entry) => entry.split(":")[0].replace(/[()]/g, "").trim().toLowerCase();
// A name with a sign that means something in the list stands in quotation marks.
const written = (name) => (/[,;:()"]/.test(name) ? `"${name}"` : name);

export const isChosen = (text, name) =>
  written(name) !== name ? text.includes(written(name)) : text.split(/[,;\n]/).some((entry) => nameIn(entry) === name.toLowerCase());

// The text with a concept added to the list, or taken out of it.
export function toggled(text, name) {
  if (isChosen(text, name)) {
    if (written(name) !== name) return text.replace(written(name), "").replace(/^[\s,;]+|[\s,;]+$/g, "");
    const rest = text.split(/[,;\n]/).filter((entry) => nameIn(entry) !== name.toLowerCase());
    return rest.map((entry) => entry.trim()).filter(Boolean).join(", ");
  }
  const before = text.trimEnd().replace(/[,;]$/, "");
  return before ? `${before}, ${written(name)}` : written(name);
}

// The classes and how they are said in words. Index k is class number k + 1.
const data = JSON.parse(document.getElementById("data").textContent);
const nTotal = data.size.reduce((sum, n) => sum + n, 0);
const byId = (id) => document.getElementById(id);
const all = [...data.size.keys()];
const filled = all.filter((k) => data.size[k] > 0);

const count = (n) => n.toLocaleString("en-US");
const plural = (n, word, more = word + "s") => `${count(n)} ${n === 1 ? word : more}`;
const particles = (n) => plural(n, "particle");
const percent = (n) => (nTotal ? `${Number(((100 * n) / nTotal).toPrecision(n === nTotal ? 3 : 2))} %` : "0 %");
const resolution = (k) =>
  data.resolution[k] === null ? "–" : `${Number(data.resolution[k].toPrecision(3))} ${data.unit}`;
const totalSize = (classes) => classes.reduce((sum, k) => sum + data.size[k], 0);

function describe(k) {
  const parts = [`class ${k + 1}`, particles(data.size[k])];
  if (data.resolution[k] !== null) parts.push(`resolution ${resolution(k)}`);
  parts.push(`rank ${data.rank[k]}`);
  if (data.keep && !data.keep[k]) parts.push("suggested to leave out");
  return parts.join(", ");
}

function announce(text) {
  byId("said").textContent = text;
}

// Ties go by class number, so that an order is always the same.
function sorted(classes, by, isSelected = () => false) {
  const fine = (k) => (data.resolution[k] === null ? Infinity : data.resolution[k]);
  const keys = {
    rank: (k) => data.rank[k],
    size: (k) => -data.size[k],
    resolution: fine,
    number: (k) => k,
    selected: (k) => (isSelected(k) ? 0 : 1e9) + data.rank[k],
  };
  const key = keys[by];
  return [...classes].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    return x === y ? a - b : x < y ? -1 : 1;
  });
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

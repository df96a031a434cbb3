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

// What classes are sorted and found by: name, values, whether small ones come first.
const measures = {
  rank: { name: data.ranked ? "quality rank" : "rank by size", values: data.rank, rising: true },
  size: { name: "particles", values: data.size, rising: false },
  resolution: { name: `resolution (${data.unit})`, values: data.resolution, rising: true },
  number: { name: "class number", values: all.map((k) => k + 1), rising: true },
  ...Object.fromEntries(data.measures.map((one, i) => [`measure ${i}`, { ...one, rising: false }])),
};

// Classes without a value come last, ties go by class number: an order is always the same.
function sorted(classes, by, { reversed = false, isSelected = () => false } = {}) {
  const chosenFirst = { values: all.map((k) => data.rank[k] - (isSelected(k) ? 1e9 : 0)), rising: true };
  const { values, rising } = measures[by] || chosenFirst;
  const sign = rising === reversed ? -1 : 1;
  const compare = (a, b) => {
    const [x, y] = [values[a], values[b]];
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (x - y);
  };
  return [...classes].sort((a, b) => compare(a, b) || a - b);
}

const options = (names) => names.map((key) => element("option", { value: key }, measures[key].name));

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

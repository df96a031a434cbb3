// The panel beside the views: everything that is known of one class.
let shownClass = null;
let waiting = null;
let measuresOpen = true;

function showDetails(k) {
  if (waiting === null) requestAnimationFrame(drawDetails);
  waiting = k;
}

function drawDetails() {
  const k = waiting;
  waiting = null;
  if (k === shownClass) return;
  shownClass = k;
  const large = element("div", { class: "large" }, average(k), ...scaleBar());
  byId("details").replaceChildren(large, ...headOf(k), tableOf(k), ...reasonsOf(k), ...examplesOf(k), ...measuresOf(k));
}

function headOf(k) {
  const button = element("button", { type: "button", id: "details-toggle", "aria-pressed": selection.has(k) });
  button.textContent = selection.has(k) ? "Selected" : "Select";
  button.addEventListener("click", () => selection.toggle(k));
  return [element("div", { class: "head" }, element("h2", {}, `Class ${k + 1}`), button)];
}

function tableOf(k) {
  const rows = [
    ["particles", `${count(data.size[k])} (${percent(data.size[k])})`],
    ["resolution", resolution(k)],
    [data.ranked ? "quality rank" : "rank by size", `${count(data.rank[k])} of ${count(data.nClasses)}`],
  ];
  return listOf(rows);
}

function listOf(rows) {
  const list = element("dl");
  for (const [name, value] of rows) list.append(element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  return list;
}

function measuresOf(k) {
  if (!data.measures.length) return [];
  const text = (value) => (value === null ? "–" : String(Number(value.toPrecision(3))));
  const rows = data.measures.map(({ name, values }) => [name, text(values[k])]);
  const folded = element("details", {}, element("summary", {}, "Measures of quality"), listOf(rows));
  folded.open = measuresOpen;
  folded.addEventListener("toggle", () => (measuresOpen = folded.open));
  return [folded];
}

function reasonsOf(k) {
  if (!data.keep) return [];
  const verdict = data.keep[k] ? "Suggested to keep" : "Suggested to leave out";
  const why = data.reasons[k].split("; ").filter(Boolean).map((reason) => element("li", {}, reason));
  const reasons = why.length ? [element("ul", {}, ...why)] : [];
  return [element("div", { class: data.keep[k] ? "verdict" : "verdict doubt" }, verdict, ...reasons)];
}

function examplesOf(k) {
  if (!data.examples) return [];
  const [from, to] = [data.examples.first[k], data.examples.first[k + 1]];
  if (from === to) return [];
  const strip = element("div", { class: "examples" });
  for (let i = from; i < to; i++) {
    const one = picture("example", data.examples, i);
    one.title = `particle ${count(data.examples.particle[i])} of the file`;
    strip.append(one);
  }
  const posed = data.examples.aligned ? "turned, centred, " : "";
  const title = `${to - from} of ${particles(data.size[k])}, ${posed}to ${data.examples.limit}`;
  return [element("h3", {}, title), strip];
}

selection.listeners.push((changed) => {
  if (!changed.has(shownClass)) return;
  const button = byId("details-toggle");
  button.setAttribute("aria-pressed", selection.has(shownClass));
  button.textContent = selection.has(shownClass) ? "Selected" : "Select";
});

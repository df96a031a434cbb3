// Selecting by rule: a limit on any measure, which its slider shows as it moves; as suggested; all.
function classesByRule(rule) {
  if (rule === "all") return filled;
  if (rule === "suggested") return filled.filter((k) => data.keep[k]);
  const limit = Number.parseFloat(byId("rule-limit").value);
  if (Number.isNaN(limit)) return null;
  const { values } = measures[byId("rule-measure").value];
  const fits = byId("rule-side").value === "least" ? (value) => value >= limit : (value) => value <= limit;
  return filled.filter((k) => values[k] !== null && fits(values[k]));
}

function preview() {
  const found = byId("rules").hidden ? [] : classesByRule("limit") || [];
  byId("rule-found").textContent = `${plural(found.length, "class", "classes")}, ${particles(totalSize(found))}`;
  const marked = new Set(found);
  for (const k of all) for (const tile of tilesOf[k]) tile.classList.toggle("touched", marked.has(k));
}

// The slider goes from class to class, so that each step counts.
function steps() {
  const values = filled.map((k) => measures[byId("rule-measure").value].values[k]).filter((value) => value !== null);
  return [...new Set(values)].sort((a, b) => a - b);
}

function startLimit() {
  const values = steps();
  byId("rule-side").value = measures[byId("rule-measure").value].rising ? "most" : "least";
  byId("rule-slider").max = Math.max(0, values.length - 1);
  byId("rule-slider").value = Math.floor((values.length - 1) / 2);
  byId("rule-limit").value = values[byId("rule-slider").value] ?? "";
  preview();
}

function applyRule(rule) {
  const classes = classesByRule(rule);
  if (classes === null) {
    byId("rule-limit").focus();
    announce("Give a number.");
    return;
  }
  const what = `rule found ${plural(classes.length, "class", "classes")}`;
  const mode = byId("rule-mode").value;
  if (mode === "replace") selection.set(classes, what);
  else if (mode === "add") selection.add(classes, what);
  else if (mode === "remove") selection.remove(classes, what);
  else selection.set(classes.filter((k) => selection.has(k)), what);
}

function toggleRules(open = byId("rules").hidden) {
  byId("rules").hidden = !open;
  byId("rules-open").setAttribute("aria-expanded", open);
  preview();
  if (open) byId("rule-measure").focus();
  else if (byId("rules").contains(document.activeElement)) byId("rules-open").focus();
}

function startRules() {
  byId("rule-measure").append(...options(Object.keys(measures).filter((key) => key !== "number")));
  byId("rule-measure").addEventListener("change", startLimit);
  byId("rule-slider").addEventListener("input", () => {
    byId("rule-limit").value = steps()[byId("rule-slider").value];
    preview();
  });
  for (const id of ["rule-limit", "rule-side"]) byId(id).addEventListener("input", preview);
  if (data.keep) byId("rule-kept").textContent = count(filled.filter((k) => data.keep[k]).length);
  startLimit();
  byId("rules-open").addEventListener("click", () => toggleRules());
  byId("rules").addEventListener("click", (event) => {
    if (event.target.dataset.rule) applyRule(event.target.dataset.rule);
  });
  byId("rules").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.target.tagName !== "INPUT") return;
    event.preventDefault();
    applyRule("limit");
  });
}

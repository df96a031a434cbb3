// Selecting by rule: the first n, finer than, larger than, as suggested.
function classesByRule(rule) {
  const number = (id) => Number.parseFloat(byId(id).value);
  if (rule === "all") return filled;
  if (rule === "suggested") return filled.filter((k) => data.keep[k]);
  const limit = number(`rule-${rule}`);
  if (!(limit > 0)) return null;
  if (rule === "first") return sorted(filled, byId("sort").value, (k) => selection.has(k)).slice(0, limit);
  if (rule === "size") return filled.filter((k) => data.size[k] >= limit);
  return filled.filter((k) => data.resolution[k] !== null && data.resolution[k] <= limit);
}

function applyRule(rule) {
  const classes = classesByRule(rule);
  if (classes === null) {
    byId(`rule-${rule}`).focus();
    announce("Give a number above 0.");
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
  if (open) byId("rule-first").focus();
  else if (byId("rules").contains(document.activeElement)) byId("rules-open").focus();
}

function startRules() {
  const fine = filled.map((k) => data.resolution[k]).filter((value) => value !== null).sort((a, b) => a - b);
  byId("rule-first").value = Math.max(1, Math.round(filled.length / 2));
  byId("rule-first").max = filled.length;
  byId("rule-resolution").value = fine.length ? Number((fine[Math.floor(fine.length / 2)]).toPrecision(3)) : "";
  byId("rule-size").value = Math.max(1, Math.round(nTotal / Math.max(1, filled.length) / 2));
  if (data.keep) byId("rule-kept").textContent = count(filled.filter((k) => data.keep[k]).length);
  byId("rules-open").addEventListener("click", () => toggleRules());
  byId("rules").addEventListener("click", (event) => {
    if (event.target.dataset.rule) applyRule(event.target.dataset.rule);
  });
  byId("rules").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.target.tagName !== "INPUT") return;
    event.preventDefault();
    applyRule(event.target.id.slice("rule-".length));
  });
}

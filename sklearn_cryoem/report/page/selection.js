// What is selected, with a history; everybody who shows it listens.
const selection = {
  chosen: new Set(),
  past: [],
  future: [],
  listeners: [],

  has(k) {
    return this.chosen.has(k);
  },

  list() {
    return [...this.chosen].sort((a, b) => a - b);
  },

  // Make `classes` the selection, as one step that can be undone.
  set(classes, what) {
    const next = new Set(classes);
    if (next.size === this.chosen.size && [...next].every((k) => this.chosen.has(k))) {
      announce(`${what}: nothing changed`);
      return;
    }
    this.past.push(this.chosen);
    this.future = [];
    this.show(next, what);
  },

  add(classes, what) {
    this.set([...this.chosen, ...classes], what);
  },

  remove(classes, what) {
    const out = new Set(classes);
    this.set(this.list().filter((k) => !out.has(k)), what);
  },

  toggle(k) {
    if (this.has(k)) this.remove([k], `class ${k + 1} taken out`);
    else this.add([k], `class ${k + 1} selected`);
  },

  undo() {
    if (!this.past.length) return;
    this.future.push(this.chosen);
    this.show(this.past.pop(), "undone");
  },

  redo() {
    if (!this.future.length) return;
    this.past.push(this.chosen);
    this.show(this.future.pop(), "done again");
  },

  show(next, what) {
    const changed = new Set([...next, ...this.chosen].filter((k) => next.has(k) !== this.chosen.has(k)));
    this.chosen = next;
    this.remember();
    announce(`${what}. ${this.summary()}`);
    for (const listener of this.listeners) listener(changed);
  },

  summary() {
    const n = this.chosen.size;
    if (!n) return "No class selected";
    const size = totalSize([...this.chosen]);
    return `${plural(n, "class", "classes")} selected: ${particles(size)}, ${percent(size)}`;
  },

  // A reload or a closed window must not lose an hour of looking. Files may have no storage: then it is so.
  key: `sklearn-cryoem selection: ${JSON.stringify(data.source)}, ${data.nClasses} classes, ${nTotal} particles`,

  remember() {
    try {
      localStorage.setItem(this.key, JSON.stringify(this.list()));
    } catch {
      return;
    }
  },

  recall() {
    try {
      const kept = JSON.parse(localStorage.getItem(this.key)) || [];
      const valid = kept.filter((k) => Number.isInteger(k) && k >= 0 && k < data.nClasses);
      if (valid.length) this.set(valid, "selection of the last visit");
    } catch {
      return;
    }
  },
};

// Views, theme, shortcuts; then everything starts.
const tabs = [...document.querySelectorAll('[role="tab"]')];

function showView(tab) {
  for (const one of tabs) {
    one.setAttribute("aria-selected", one === tab);
    one.tabIndex = one === tab ? 0 : -1;
    byId(one.getAttribute("aria-controls")).hidden = one !== tab;
  }
  byId("details").hidden = ["tab-alignment", "tab-convergence", "tab-run"].includes(tab.id);
  if (atlas) atlas.resize();
}

function startViews() {
  for (const tab of tabs) tab.addEventListener("click", () => showView(tab));
  document.querySelector('[role="tablist"]').addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
    showView(next);
    next.focus();
  });
}

function startTheme() {
  const themes = ["system", "light", "dark"];
  byId("theme").addEventListener("click", () => {
    const theme = themes[(themes.indexOf(document.documentElement.dataset.theme || "system") + 1) % 3];
    document.documentElement.dataset.theme = theme;
    byId("theme").textContent = `Theme: ${theme}`;
    atlasChanged();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", atlasChanged);
}

function showTotal() {
  byId("saved").hidden = true; // what it says is of another selection now
  const size = totalSize([...selection.chosen]);
  byId("total").textContent = selection.summary();
  byId("share").style.width = nTotal ? `${(100 * size) / nTotal}%` : "0";
  byId("undo").disabled = !selection.past.length;
  byId("redo").disabled = !selection.future.length;
  byId("clear").disabled = byId("export").disabled = byId("picture").disabled = !selection.chosen.size;
}

const invert = () => selection.set(filled.filter((k) => !selection.has(k)), "selection inverted");
const clear = () => selection.set([], "selection cleared");

const SHORTCUTS = {
  i: () => byId("invert").click(),
  Delete: () => byId("clear").click(),
  r: () => toggleRules(),
  s: () => byId("export").click(),
  o: () => byId("import").click(),
  t: () => byId("theme").click(),
  "?": () => byId("keys").showModal(),
  Escape: () => {
    byId("saved").hidden = true;
    toggleRules(false);
  },
};

function pressed(event) {
  const writing = event.target.matches("input:not([type=checkbox], [type=range]), select, textarea");
  if (byId("keys").open || (writing && event.key !== "Escape")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    if (key === "z" && event.shiftKey) selection.redo();
    else if (key === "z") selection.undo();
    else if (key === "y") selection.redo();
    else if (key === "a") selection.add(shownOrder(), "all classes selected");
    else return;
  } else if (event.altKey) return;
  else if (/^[1-6]$/.test(key) && tabs[key - 1]) showView(tabs[key - 1]);
  else if (SHORTCUTS[key]) SHORTCUTS[key]();
  else return;
  event.preventDefault();
}

function startAlignment() {
  if (!data.alignment) return;
  addSheet("reference", data.alignment);
  const words = (i) => [element("span", {}, count(data.alignment.size[i]))];
  const tiles = data.alignment.number.map((number, i) =>
    element("div", { class: "tile" }, picture("reference", data.alignment, i), element("b", {}, String(number)), element("span", {}, ...words(i))),
  );
  byId("alignment").append(...tiles);
}

function start() {
  addSheet("average", data.averages);
  addSheet("example", data.examples);
  if (data.tree) addSheet("first", data.tree.averages);
  startViews();
  startTheme();
  startGallery();
  startTree();
  startAlignment();
  addBoxSelection(gallery);
  startRules();
  startFiles();
  selection.listeners.push(showTotal);
  byId("undo").addEventListener("click", () => selection.undo());
  byId("redo").addEventListener("click", () => selection.redo());
  byId("invert").addEventListener("click", invert);
  byId("clear").addEventListener("click", clear);
  byId("help").addEventListener("click", () => byId("keys").showModal());
  addEventListener("keydown", pressed);
  showTotal();
  selection.recall();
  if (filled.length) showDetails(shownOrder()[0]);
  startAtlas().then(() => (document.documentElement.dataset.ready = "yes"));
}

start();

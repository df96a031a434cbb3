// Tiles: one class average each, cut out of the one picture that holds all of them.
const tilesOf = all.map(() => []); // every tile that shows class k

// A blob instead of the data URI: the style sheet stays small.
function blobUrl(uri) {
  const bytes = Uint8Array.from(atob(uri.slice(uri.indexOf(",") + 1)), (letter) => letter.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
}

function addSheet(name, sheet) {
  if (!sheet) return;
  sheet.url = blobUrl(sheet.uri);
  delete sheet.uri;
  const rule = `.${name}{background-image:url(${sheet.url});--columns:${sheet.columns};--rows:${sheet.rows};--source:${sheet.tile}}`;
  document.head.append(element("style", {}, rule));
}

function picture(name, sheet, index) {
  const made = element("i", { class: `picture ${name}`, "aria-hidden": "true" });
  made.style.setProperty("--x", index % sheet.columns);
  made.style.setProperty("--y", Math.floor(index / sheet.columns));
  return made;
}

const average = (k) => picture("average", data.averages, k);

function scaleBar() {
  if (!data.scaleBar) return [];
  const bar = element("span", { class: "bar" }, data.scaleBar.label);
  bar.style.setProperty("--length", data.scaleBar.fraction);
  return [bar];
}

function makeTile(k) {
  const tile = element(
    "div",
    { class: "tile", role: "option", tabindex: "-1", "aria-selected": selection.has(k), "aria-label": describe(k) },
    average(k),
    element("b", { "aria-hidden": "true" }, String(k + 1)),
    element("span", { "aria-hidden": "true" }, element("span", {}, count(data.size[k])), element("span", {}, resolution(k))),
  );
  tile.dataset.class = k;
  if (data.keep && !data.keep[k]) tile.classList.add("doubtful");
  if (!data.size[k]) tile.classList.add("empty");
  tilesOf[k].push(tile);
  return tile;
}

selection.listeners.push((changed) => {
  for (const k of changed) for (const tile of tilesOf[k]) tile.setAttribute("aria-selected", selection.has(k));
});

// A list of tiles that keys, clicks and boxes work on; the gallery and the tree are two of them.
class TileList {
  constructor(root) {
    this.root = root;
    this.anchor = null;
    root.addEventListener("click", (event) => this.clicked(event));
    root.addEventListener("keydown", (event) => this.pressed(event));
    root.addEventListener("focusin", (event) => this.focused(event.target.closest(".tile")));
    root.addEventListener("pointerover", (event) => {
      const tile = event.target.closest(".tile");
      if (tile) showDetails(Number(tile.dataset.class));
    });
  }

  tiles() {
    return [...this.root.querySelectorAll(".tile")].filter((tile) => !tile.hidden);
  }

  // Exactly one tile is reached with Tab: the one that had the focus last.
  makeReachable(tile) {
    for (const other of this.root.querySelectorAll('.tile[tabindex="0"]')) other.tabIndex = -1;
    if (tile) tile.tabIndex = 0;
  }

  focused(tile) {
    if (!tile) return;
    this.makeReachable(tile);
    showDetails(Number(tile.dataset.class));
  }

  clicked(event) {
    const tile = event.target.closest(".tile");
    if (!tile || this.root.dataset.boxed) return;
    if (event.shiftKey && this.anchor) this.selectRange(tile);
    else {
      selection.toggle(Number(tile.dataset.class));
      this.anchor = tile;
    }
    tile.focus({ preventScroll: true });
  }

  selectRange(tile) {
    const tiles = this.tiles();
    const ends = [tiles.indexOf(this.anchor), tiles.indexOf(tile)].sort((a, b) => a - b);
    const range = tiles.slice(Math.max(0, ends[0]), ends[1] + 1).map((one) => Number(one.dataset.class));
    selection.add(range, `range of ${plural(range.length, "class", "classes")} selected`);
  }

  pressed(event) {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    if ((event.key === " " || event.key === "Enter") && !event.ctrlKey) {
      event.preventDefault();
      selection.toggle(Number(tile.dataset.class));
      this.anchor = tile;
      return;
    }
    const next = this.towards(tile, event.key);
    if (!next || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.shiftKey) {
      this.anchor = this.anchor || tile;
      this.selectRange(next);
    }
    next.focus();
  }

  towards(tile, key) {
    const tiles = this.tiles();
    const at = tiles.indexOf(tile);
    const last = tiles.length - 1;
    const step = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[key];
    if (step !== undefined) return tiles[Math.min(last, Math.max(0, step))];
    const rows = { ArrowUp: -1, ArrowDown: 1, PageUp: -4, PageDown: 4 }[key];
    return rows === undefined ? null : this.rowsAway(tiles, tile, rows);
  }

  // The tile nearest to one some rows away: by geometry, since rows of a tree end where they like.
  rowsAway(tiles, tile, rows) {
    const here = tile.getBoundingClientRect();
    const wanted = here.top + rows * here.height * 1.08;
    let [best, least] = [tile, Infinity];
    for (const other of tiles) {
      const there = other.getBoundingClientRect();
      if ((there.top - here.top) * rows <= 2) continue;
      const cost = Math.abs(there.top - wanted) * 20 + Math.abs(there.left - here.left);
      if (cost < least) [best, least] = [other, cost];
    }
    return best;
  }
}

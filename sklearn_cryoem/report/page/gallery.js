// The gallery: all class averages in one order.
const gallery = new TileList(byId("gallery"));
const galleryTiles = all.map(makeTile);

function shownOrder() {
  const classes = byId("empty").checked ? all : filled;
  return sorted(classes, byId("sort").value, (k) => selection.has(k));
}

function arrange() {
  const order = shownOrder();
  const focused = document.activeElement;
  gallery.root.replaceChildren(...order.map((k) => galleryTiles[k]));
  byId("nothing").hidden = order.length > 0;
  if (gallery.root.contains(focused)) focused.focus();
  else gallery.makeReachable(galleryTiles[order[0]]);
  byId("rule-order").textContent = {
    rank: data.ranked ? "by quality rank" : "by size",
    size: "by size",
    resolution: "by resolution",
    number: "by class number",
    selected: "selected first",
  }[byId("sort").value];
}

function setTileSize(pixels) {
  document.documentElement.style.setProperty("--tile", `${pixels}px`);
  byId("tile-size").value = pixels;
}

function startGallery() {
  byId("sort").value = data.ranked ? "rank" : "size";
  byId("empty").checked = false;
  byId("empty").closest("label").hidden = filled.length === all.length;
  setTileSize(filled.length > 400 ? 72 : filled.length > 100 ? 96 : 128);
  byId("sort").addEventListener("change", () => {
    arrange();
    byId("gallery").scrollTop = 0;
    announce(`sorted ${byId("rule-order").textContent}`);
  });
  byId("empty").addEventListener("change", arrange);
  byId("tile-size").addEventListener("input", (event) => setTileSize(event.target.value));
  byId("negative").addEventListener("change", (event) => {
    document.documentElement.classList.toggle("negative", event.target.checked);
    atlasChanged();
  });
  arrange();
}

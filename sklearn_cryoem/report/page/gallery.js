// The gallery: all class averages in one order.
const gallery = new TileList(byId("gallery"));
const galleryTiles = all.map(makeTile);

function shownOrder() {
  const classes = byId("empty").checked ? all : filled;
  const isSelected = (k) => selection.has(k);
  return sorted(classes, byId("sort").value, { reversed: byId("reversed").checked, isSelected });
}

function arrange() {
  const order = shownOrder();
  const focused = document.activeElement;
  gallery.root.replaceChildren(...order.map((k) => galleryTiles[k]));
  byId("nothing").hidden = order.length > 0;
  if (gallery.root.contains(focused)) focused.focus();
  else gallery.makeReachable(galleryTiles[order[0]]);
}

function setTileSize(pixels) {
  document.documentElement.style.setProperty("--tile", `${pixels}px`);
  byId("tile-size").value = pixels;
}

function startGallery() {
  byId("sort").prepend(...options(Object.keys(measures)));
  byId("sort").value = data.ranked ? "rank" : "size";
  byId("reversed").checked = byId("negative").checked = false;
  byId("empty").checked = false;
  byId("empty").closest("label").hidden = filled.length === all.length;
  setTileSize(filled.length > 400 ? 72 : filled.length > 100 ? 96 : 128);
  for (const id of ["sort", "reversed"])
    byId(id).addEventListener("change", () => {
      arrange();
      byId("gallery").scrollTop = 0;
      announce(`sorted by ${byId("sort").selectedOptions[0].textContent}`);
    });
  byId("empty").addEventListener("change", arrange);
  byId("tile-size").addEventListener("input", (event) => setTileSize(event.target.value));
  byId("negative").addEventListener("change", (event) => {
    document.documentElement.classList.toggle("negative", event.target.checked);
    atlasChanged();
  });
  arrange();
}

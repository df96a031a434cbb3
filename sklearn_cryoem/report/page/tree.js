// The tree of a deep clustering: first classes, and the sub-classes that each was divided into.
function startTree() {
  if (!data.tree) return;
  const list = new TileList(byId("tree"));
  const branches = data.tree.parents.map(makeBranch);
  const arrangeTree = () => {
    const order = [...branches.keys()];
    if (byId("tree-sort").value === "size")
      order.sort((a, b) => data.tree.parents[b].size - data.tree.parents[a].size || a - b);
    list.root.replaceChildren(...order.map((i) => branches[i]));
    list.makeReachable(list.tiles()[0]);
  };
  byId("tree-sort").addEventListener("change", arrangeTree);
  arrangeTree();
  addBoxSelection(list);
}

function makeBranch(parent, index) {
  const name = `first class ${parent.number}`;
  const kept = element("input", { type: "checkbox", "aria-label": `All sub-classes of ${name}` });
  const divided = parent.whole ? "kept whole" : plural(parent.children.length, "sub-class", "sub-classes");
  const head = element(
    "label",
    { class: "parent" },
    ...(data.tree.averages ? [picture("first", data.tree.averages, index)] : []),
    element("span", {}, kept, element("strong", {}, ` Class ${parent.number}`)),
    element("span", { class: "hint" }, `${particles(parent.size)}, ${divided}`),
  );
  const children = sorted(parent.children.filter((k) => data.size[k] > 0), "size");
  const tiles = element("div", {
    class: "tiles",
    role: "listbox",
    "aria-multiselectable": "true",
    "aria-label": `Sub-classes of ${name}`,
  });
  tiles.append(...children.map(makeTile));
  const check = () => {
    const n = children.filter((k) => selection.has(k)).length;
    kept.checked = n > 0 && n === children.length;
    kept.indeterminate = n > 0 && n < children.length;
  };
  kept.disabled = !children.length;
  kept.addEventListener("change", () => {
    if (kept.checked) selection.add(children, `sub-classes of ${name} selected`);
    else selection.remove(children, `sub-classes of ${name} taken out`);
  });
  selection.listeners.push(check);
  return element("div", { class: "branch" }, head, tiles);
}

// A box dragged over tiles selects what it touches; with Alt it takes that out.
function addBoxSelection(list) {
  const root = list.root;
  const boxElement = element("div", { class: "selection-box", hidden: "" });
  let start = null; // where the drag began, in the coordinates of the content
  let pointer = null;
  let outlines = []; // tiles and where they are

  const content = (event) => {
    const frame = root.getBoundingClientRect();
    return [event.clientX - frame.left + root.scrollLeft, event.clientY - frame.top + root.scrollTop];
  };

  const corners = () => {
    const [x, y] = content(pointer);
    return [Math.min(x, start[0]), Math.min(y, start[1]), Math.max(x, start[0]), Math.max(y, start[1])];
  };

  const inside = () => {
    const [left, top, right, bottom] = corners();
    return outlines.filter((s) => s.right > left && s.left < right && s.bottom > top && s.top < bottom);
  };

  function begin() {
    const frame = root.getBoundingClientRect();
    outlines = list.tiles().map((tile) => {
      const outline = tile.getBoundingClientRect();
      const [dx, dy] = [root.scrollLeft - frame.left, root.scrollTop - frame.top];
      return { tile, left: outline.left + dx, right: outline.right + dx, top: outline.top + dy, bottom: outline.bottom + dy };
    });
    root.append(boxElement);
    boxElement.hidden = false;
    root.dataset.boxed = "yes";
    requestAnimationFrame(follow);
  }

  // Each frame: scroll where the pointer is near the rim, draw the box, mark what it touches.
  function follow() {
    if (boxElement.hidden) return;
    const frame = root.getBoundingClientRect();
    const over = Math.max(0, pointer.clientY - frame.bottom + 30) - Math.max(0, frame.top + 30 - pointer.clientY);
    root.scrollTop += Math.sign(over) * Math.min(24, Math.abs(over));
    const [left, top, right, bottom] = corners();
    boxElement.style.cssText = `left:${left}px;top:${top}px;width:${right - left}px;height:${bottom - top}px`;
    const touched = new Set(inside());
    for (const outline of outlines) outline.tile.classList.toggle("touched", touched.has(outline));
    requestAnimationFrame(follow);
  }

  function end(apply) {
    if (start && !boxElement.hidden) {
      const classes = apply ? inside().map((outline) => Number(outline.tile.dataset.class)) : [];
      for (const outline of outlines) outline.tile.classList.remove("touched");
      boxElement.hidden = true;
      boxElement.remove();
      const what = `box of ${plural(classes.length, "class", "classes")}`;
      if (classes.length && pointer.altKey) selection.remove(classes, `${what} taken out`);
      else if (classes.length) selection.add(classes, `${what} selected`);
      setTimeout(() => delete root.dataset.boxed); // after the click that ends the drag
    }
    start = null;
  }

  root.addEventListener("pointerdown", (event) => {
    if (event.button || event.pointerType === "touch" || event.shiftKey) return;
    if (event.target.closest("button, input, label")) return;
    if (event.clientX > root.getBoundingClientRect().left + root.clientWidth) return; // the scroll bar
    [start, pointer] = [content(event), event];
  });
  addEventListener("pointermove", (event) => {
    if (!start) return;
    pointer = event;
    const [x, y] = content(event);
    if (boxElement.hidden && Math.hypot(x - start[0], y - start[1]) > 6) begin();
    if (!boxElement.hidden) event.preventDefault();
  });
  addEventListener("pointerup", (event) => {
    if (start) pointer = event;
    end(true);
  });
  addEventListener("pointercancel", () => end(false));
  addEventListener("keydown", (event) => event.key === "Escape" && end(false));
}

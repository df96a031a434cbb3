// Pointer and keys on the atlas: move, zoom, box, pick.
function addPointer(map) {
  const { canvas, view } = map;
  const tip = byId("tip");
  const boxElement = byId("map-box");
  let drag = null; // {from, last, boxed, moved}

  const position = (event) => {
    const frame = canvas.getBoundingClientRect();
    return [event.clientX - frame.left, event.clientY - frame.top];
  };

  function point(px, py) {
    const [x, y] = view.toMap(px, py);
    const k = classAt(x, y);
    const density = map.densityAt(x, y);
    canvas.style.cursor = k >= 0 ? "pointer" : map.boxing ? "crosshair" : "grab";
    if (k >= 0) showDetails(k);
    const here = density === null ? "" : `about ${Number(density.toPrecision(2))} particles per node here`;
    const about = k < 0 ? "" : `class ${k + 1}: ${particles(data.size[k])}, ${resolution(k)}`;
    tip.replaceChildren(...[about, here].filter(Boolean).map((line) => element("div", {}, line)));
    tip.hidden = !tip.childElementCount;
    tip.style.transform = `translate(${Math.min(px + 14, view.wide - 230)}px, ${Math.min(py + 16, view.high - 44)}px)`;
  }

  function dragTo(px, py) {
    const [fromX, fromY] = drag.from;
    drag.moved = drag.moved || Math.hypot(px - fromX, py - fromY) > 5;
    if (!drag.moved) return;
    tip.hidden = true;
    if (drag.boxed) {
      boxElement.hidden = false;
      const [left, top] = [Math.min(px, fromX), Math.min(py, fromY)];
      boxElement.style.cssText = `left:${left}px;top:${top}px;width:${Math.abs(px - fromX)}px;height:${Math.abs(py - fromY)}px`;
    } else {
      view.move(px - drag.last[0], py - drag.last[1]);
      map.draw();
    }
    drag.last = [px, py];
  }

  function drop(event) {
    if (!drag) return;
    const [px, py] = position(event);
    if (!drag.moved) pick(view.toMap(px, py));
    else if (drag.boxed) pickBox([...view.toMap(...drag.from), ...view.toMap(px, py)], event.altKey);
    boxElement.hidden = true;
    drag = null;
  }

  function pick([x, y]) {
    const k = classAt(x, y);
    if (k < 0) return;
    map.focus = k;
    selection.toggle(k);
  }

  function pickBox(box, out) {
    const classes = classesInBox(...box);
    const what = `box of ${plural(classes.length, "class", "classes")}`;
    if (out) selection.remove(classes, `${what} taken out`);
    else selection.add(classes, `${what} selected`);
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    drag = { from: position(event), last: position(event), boxed: event.shiftKey || map.boxing, moved: false };
  });
  canvas.addEventListener("pointermove", (event) => (drag ? dragTo(...position(event)) : point(...position(event))));
  canvas.addEventListener("pointerup", drop);
  canvas.addEventListener("pointercancel", () => {
    drag = null;
    boxElement.hidden = true;
  });
  canvas.addEventListener("pointerleave", () => (tip.hidden = true));
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const pixels = event.deltaY * (event.deltaMode === 1 ? 18 : 1);
      view.zoom(Math.exp(-Math.max(-120, Math.min(120, pixels)) / 300), ...position(event));
      map.draw();
    },
    { passive: false },
  );
}

function addKeys(map) {
  const { canvas, view } = map;
  const act = (change) => {
    change();
    map.draw();
  };
  const zoom = (factor) => act(() => view.zoom(factor, ...(map.focus < 0 ? [] : view.toScreen(data.atlas.x[map.focus], data.atlas.y[map.focus]))));
  const fit = () => act(() => view.fit());
  const setBoxing = (boxing) => {
    map.boxing = boxing;
    byId("drag-pan").setAttribute("aria-pressed", !boxing);
    byId("drag-box").setAttribute("aria-pressed", boxing);
  };
  const go = (k) =>
    act(() => {
      map.focus = k;
      view.reveal(data.atlas.x[k], data.atlas.y[k]);
      showDetails(k);
      announce(`${describe(k)}${selection.has(k) ? ", selected" : ""}`);
    });

  byId("zoom-in").addEventListener("click", () => zoom(1.4));
  byId("zoom-out").addEventListener("click", () => zoom(1 / 1.4));
  byId("zoom-fit").addEventListener("click", fit);
  byId("drag-pan").addEventListener("click", () => setBoxing(false));
  byId("drag-box").addEventListener("click", () => setBoxing(true));
  canvas.addEventListener("focus", () => map.draw());
  canvas.addEventListener("blur", () => map.draw());
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const towards = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const first = sorted(filled, "size")[0] ?? 0;
    if (towards) go(map.focus < 0 ? first : classTowards(map.focus, ...towards));
    else if (event.key === " " || event.key === "Enter") map.focus < 0 ? go(first) : selection.toggle(map.focus);
    else if (event.key === "+" || event.key === "=") zoom(1.4);
    else if (event.key === "-") zoom(1 / 1.4);
    else if (event.key === "0") fit();
    else if (event.key === "b") setBoxing(!map.boxing);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
}

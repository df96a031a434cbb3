// The atlas: density of particles, class averages where they lie, what is selected.
const DISC = 0.84; // diameter of a class average, in node spacings
const RAMPS = {
  light: [[255, 255, 255], [216, 239, 227], [127, 205, 187], [44, 127, 184], [37, 52, 148]],
  dark: [[24, 28, 32], [22, 60, 74], [22, 108, 118], [72, 176, 150], [226, 244, 190]],
};
let atlas = null;

const isDark = () => getComputedStyle(document.documentElement).getPropertyValue("--dark").trim() === "1";
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function atlasChanged() {
  if (atlas) atlas.recolour();
}

// Colour of a share of the peak, from 0 to 1.
function rampColour(share) {
  const ramp = RAMPS[isDark() ? "dark" : "light"];
  const at = Math.min(share, 1) * (ramp.length - 1);
  const [i, part] = [Math.min(Math.floor(at), ramp.length - 2), at - Math.min(Math.floor(at), ramp.length - 2)];
  return ramp[i].map((low, channel) => low + part * (ramp[i + 1][channel] - low));
}

function loaded(url) {
  const image = new Image();
  image.src = url;
  return image.decode().then(() => image);
}

class Atlas {
  constructor(averages, density) {
    this.canvas = byId("map");
    this.averages = averages;
    this.grey = this.readGrey(density);
    const { x, y, width, height } = data.atlas.density;
    this.view = new View(x, y, width, height);
    this.focus = -1;
    this.isScheduled = false;
    byId("legend-high").textContent = `${Number(data.atlas.density.peak.toPrecision(3))} or more particles per node`;
    selection.listeners.push(() => this.draw());
    new ResizeObserver(() => this.resize()).observe(byId("map-frame"));
    byId("discs").addEventListener("change", () => this.draw());
    this.recolour();
  }

  readGrey(image) {
    const canvas = new OffscreenCanvas(image.width, image.height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, image.width, image.height);
  }

  // Particles per node at a place of the map.
  densityAt(x, y) {
    const d = data.atlas.density;
    const column = Math.floor(((x - d.x) / d.width) * this.grey.width);
    const row = Math.floor(((y - d.y) / d.height) * this.grey.height);
    if (column < 0 || row < 0 || column >= this.grey.width || row >= this.grey.height) return null;
    return (this.grey.data[4 * (row * this.grey.width + column)] / 255) * d.peak;
  }

  recolour() {
    const picture = new ImageData(this.grey.width, this.grey.height);
    const table = Array.from({ length: 256 }, (_, value) => rampColour(value / 255));
    for (let i = 0; i < picture.data.length; i += 4) {
      picture.data.set(table[this.grey.data[i]], i);
      picture.data[i + 3] = 255;
    }
    this.density = new OffscreenCanvas(picture.width, picture.height);
    this.density.getContext("2d").putImageData(picture, 0, 0);
    this.discs = this.makeDiscs();
    const legend = byId("legend").getContext("2d");
    for (let i = 0; i < 120; i++) {
      legend.fillStyle = `rgb(${rampColour(i / 119).join(" ")})`;
      legend.fillRect(i, 0, 1, 10);
    }
    this.draw();
  }

  // All averages as discs, once, so that a frame is nothing but copies.
  makeDiscs() {
    const { columns, rows } = data.averages;
    const tile = Math.max(48, Math.min(128, Math.floor(3072 / columns)));
    this.discSize = tile;
    const sheet = new OffscreenCanvas(tile * columns, tile * rows);
    const context = sheet.getContext("2d");
    context.beginPath();
    for (const k of filled) {
      const [x, y] = [(k % columns) * tile + tile / 2, Math.floor(k / columns) * tile + tile / 2];
      context.moveTo(x + tile / 2 - 0.5, y);
      context.arc(x, y, tile / 2 - 0.5, 0, 2 * Math.PI);
    }
    context.clip();
    if (document.documentElement.classList.contains("negative")) context.filter = "invert(1)";
    context.imageSmoothingQuality = "high";
    context.drawImage(this.averages, 0, 0, sheet.width, sheet.height);
    return sheet;
  }

  resize() {
    const { clientWidth, clientHeight } = byId("map-frame");
    if (!clientWidth) return;
    const fine = devicePixelRatio || 1;
    [this.canvas.width, this.canvas.height] = [clientWidth * fine, clientHeight * fine];
    this.view.resize(clientWidth, clientHeight);
    this.draw();
  }

  draw() {
    if (this.isScheduled || !this.view.wide) return;
    this.isScheduled = true;
    requestAnimationFrame(() => {
      this.isScheduled = false;
      this.paint(this.canvas.getContext("2d"));
    });
  }

  paint(context) {
    const fine = devicePixelRatio || 1;
    context.setTransform(fine, 0, 0, fine, 0, 0);
    context.imageSmoothingQuality = "high";
    context.clearRect(0, 0, this.view.wide, this.view.high);
    this.paintPanels(context);
    const radius = (DISC * this.view.scale) / 2;
    const asDiscs = byId("discs").checked && radius > 5;
    for (const k of all) {
      const [x, y] = this.view.toScreen(data.atlas.x[k], data.atlas.y[k]);
      if (x < -radius || y < -radius || x > this.view.wide + radius || y > this.view.high + radius) continue;
      if (asDiscs && data.size[k]) this.paintDisc(context, k, x, y, radius);
      else this.paintDot(context, k, x, y);
    }
    this.paintFocus(context, asDiscs ? radius : 6);
  }

  paintPanels(context) {
    const d = data.atlas.density;
    const [left, top] = this.view.toScreen(d.x, d.y);
    context.save();
    context.beginPath();
    for (const p of data.atlas.panels) {
      const [x, y] = this.view.toScreen(p.x, p.y);
      const [width, height] = [p.width * this.view.scale, p.height * this.view.scale];
      context.roundRect(x, y, width, height, p.round ? width / 2 : 6);
    }
    context.clip();
    context.drawImage(this.density, left, top, d.width * this.view.scale, d.height * this.view.scale);
    context.restore();
    context.strokeStyle = colour("--line");
    context.stroke();
    context.fillStyle = colour("--faint");
    context.font = "12px system-ui, sans-serif";
    for (const p of data.atlas.panels)
      if (p.title && p.width * this.view.scale > 44)
        context.fillText(p.title, this.view.toScreen(p.x, p.y)[0] + 2, this.view.toScreen(p.x, p.y)[1] - 5);
  }

  paintDisc(context, k, x, y, radius) {
    const { columns } = data.averages;
    const tile = this.discSize;
    const [column, row] = [k % columns, Math.floor(k / columns)];
    context.drawImage(this.discs, column * tile, row * tile, tile, tile, x - radius, y - radius, 2 * radius, 2 * radius);
    if (selection.has(k)) {
      context.strokeStyle = colour("--chosen");
      context.lineWidth = Math.max(2, Math.min(5, radius / 9));
      context.beginPath();
      context.arc(x, y, radius + context.lineWidth / 2, 0, 2 * Math.PI);
      context.stroke();
    }
    if (radius < 34) return;
    context.fillStyle = colour("--ink");
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "center";
    // The rim keeps the number readable on every colour of the density.
    context.strokeStyle = colour("--surface");
    context.lineWidth = 3;
    context.lineJoin = "round";
    context.strokeText(String(k + 1), x - radius * 0.9, y - radius * 0.8);
    context.fillText(String(k + 1), x - radius * 0.9, y - radius * 0.8);
    context.textAlign = "start";
  }

  paintDot(context, k, x, y) {
    context.fillStyle = selection.has(k) ? colour("--chosen") : colour("--faint");
    context.beginPath();
    context.arc(x, y, data.size[k] ? 3 : 1.5, 0, 2 * Math.PI);
    context.fill();
  }

  paintFocus(context, radius) {
    if (this.focus < 0 || document.activeElement !== this.canvas) return;
    const [x, y] = this.view.toScreen(data.atlas.x[this.focus], data.atlas.y[this.focus]);
    context.strokeStyle = colour("--focus");
    context.lineWidth = 2;
    context.setLineDash([5, 3]);
    context.beginPath();
    context.arc(x, y, radius + 7, 0, 2 * Math.PI);
    context.stroke();
    context.setLineDash([]);
  }
}

async function startAtlas() {
  if (!data.atlas) return;
  const pictures = [loaded(data.averages.url), loaded(blobUrl(data.atlas.density.uri))];
  atlas = new Atlas(...(await Promise.all(pictures)));
  addPointer(atlas);
  addKeys(atlas);
}

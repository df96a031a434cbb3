// Geometry of the atlas: between places on the map (node spacings) and pixels of the screen.
class View {
  constructor(x, y, width, height) {
    Object.assign(this, { x, y, width, height, scale: 1, left: 0, top: 0 });
  }

  resize(pixelsWide, pixelsHigh) {
    const untouched = !this.wide || this.scale === this.fitting();
    [this.wide, this.high] = [pixelsWide, pixelsHigh];
    if (untouched) this.fit();
  }

  fitting() {
    return Math.min((this.wide - 24) / this.width, (this.high - 44) / this.height, 190);
  }

  fit() {
    this.scale = this.fitting();
    this.left = (this.wide - this.width * this.scale) / 2 - this.x * this.scale;
    this.top = (this.high - this.height * this.scale) / 2 - this.y * this.scale;
  }

  zoom(factor, px = this.wide / 2, py = this.high / 2) {
    const next = Math.min(400, Math.max(this.fitting() * 0.7, this.scale * factor));
    this.left = px - ((px - this.left) * next) / this.scale;
    this.top = py - ((py - this.top) * next) / this.scale;
    this.scale = next;
  }

  move(dx, dy) {
    this.left += dx;
    this.top += dy;
  }

  toScreen(x, y) {
    return [x * this.scale + this.left, y * this.scale + this.top];
  }

  toMap(px, py) {
    return [(px - this.left) / this.scale, (py - this.top) / this.scale];
  }

  // Bring a place into sight.
  reveal(x, y) {
    const [px, py] = this.toScreen(x, y);
    const rim = Math.min(60, this.wide / 4, this.high / 4);
    const into = (p, end) => (p < rim ? rim - p : p > end - rim ? end - rim - p : 0);
    this.move(into(px, this.wide), into(py, this.high));
  }
}

// The class whose disc a place lies in, or -1.
function classAt(x, y) {
  let [best, least] = [-1, 0.5];
  for (const k of all) {
    const distance = Math.hypot(data.atlas.x[k] - x, data.atlas.y[k] - y);
    if (distance < least) [best, least] = [k, distance];
  }
  return best;
}

function classesInBox(x1, y1, x2, y2) {
  const within = (value, a, b) => value >= Math.min(a, b) && value <= Math.max(a, b);
  return filled.filter((k) => within(data.atlas.x[k], x1, x2) && within(data.atlas.y[k], y1, y2));
}

// The nearest class in a direction; what lies aside counts double.
function classTowards(k, dx, dy) {
  let [best, least] = [k, Infinity];
  for (const other of all) {
    const [x, y] = [data.atlas.x[other] - data.atlas.x[k], data.atlas.y[other] - data.atlas.y[k]];
    const [ahead, aside] = [x * dx + y * dy, Math.abs(x * dy - y * dx)];
    if (ahead < 0.1 || aside > 2 * ahead) continue;
    if (ahead + 2 * aside < least) [best, least] = [other, ahead + 2 * aside];
  }
  return best;
}

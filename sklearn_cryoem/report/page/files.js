// Saving a selection and reading one: {"version": 1, "classes": [numbers from 1], "source": {...}}.
const FORMAT_VERSION = 1;

function asFile() {
  const classes = selection.list().map((k) => k + 1);
  return JSON.stringify({ version: FORMAT_VERSION, classes, source: data.source }) + "\n";
}

function download(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = element("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// A name with the time: where one is there, browsers would add a number, and the old one would be selected by.
const named = (what, end) => `${what}-${new Date().toISOString().slice(0, 19).replaceAll(/[:T]/g, "-")}.${end}`;

// Beside the run where `report --serve` shows the page, else where the browser saves files.
async function save() {
  const body = asFile();
  const served = location.protocol === "http:" && (await fetch("selection.json", { method: "POST", body }).catch(() => null));
  const name = named("selection", "json");
  const path = served && served.ok ? await served.text() : `~/Downloads/${name}`;
  if (!(served && served.ok)) download(new Blob([body], { type: "application/json" }), name);
  const command =
    data.folder === null
      ? `good = select_classes(stack, model.labels_, read_selection(Path(${JSON.stringify(path)}).expanduser()).labels)`
      : `sklearn-cryoem select ${data.folder} --selection ${path} -o good.star`;
  const where = served && served.ok ? "" : " in the folder of downloads";
  const averages = data.folder === null ? "" : " (and with --averages good.mrcs their averages)";
  const done = `${selection.summary()}. Saved${where}. These particles${averages}:`;
  showMessage([element("p", {}, done), element("code", { tabindex: "0" }, command)]);
}

// The averages that are selected, in the order shown, with number and size: a picture for a talk.
async function savePicture() {
  const classes = shownOrder().filter((k) => selection.has(k));
  const { tile, columns, url } = data.averages;
  const [side, caption] = [Math.max(tile, 96), 18];
  const across = Math.ceil(Math.sqrt(1.6 * classes.length));
  const canvas = element("canvas", { width: across * (side + 6), height: Math.ceil(classes.length / across) * (side + caption + 4) });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.font = "12px system-ui, sans-serif";
  const sheet = await loaded(url);
  classes.forEach((k, i) => {
    const [x, y] = [(i % across) * (side + 6), Math.floor(i / across) * (side + caption + 4)];
    context.filter = document.documentElement.classList.contains("negative") ? "invert(1)" : "none";
    context.drawImage(sheet, (k % columns) * tile, Math.floor(k / columns) * tile, tile, tile, x, y, side, side);
    context.filter = "none";
    context.fillStyle = "#222";
    context.fillText(`${k + 1}: ${count(data.size[k])}`, x, y + side + 13);
  });
  canvas.toBlob((blob) => download(blob, named("averages", "png")));
}

// The classes of a file, from 0, or an error that says what is wrong with it.
function readSelection(text) {
  let read;
  try {
    read = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON. Open one that was saved here.");
  }
  if (!read || !Array.isArray(read.classes)) throw new Error('This file has no list of "classes". Open one that was saved here.');
  if ((read.version ?? FORMAT_VERSION) > FORMAT_VERSION) throw new Error(`This file has version ${read.version}; this page reads version ${FORMAT_VERSION}.`);
  const wrong = read.classes.find((number) => !Number.isInteger(number) || number < 1 || number > data.nClasses);
  if (wrong !== undefined) throw new Error(`This file selects class ${wrong}; classes here are 1 to ${data.nClasses}. It is of another run.`);
  return { classes: read.classes.map((number) => number - 1), foreign: otherSource(read.source) };
}

// What a file was made from, in words, if that is not this run; null if it is or does not say.
function otherSource(source) {
  if (!source) return null;
  if (typeof source === "string" || typeof data.source === "string") return source === data.source ? null : String(source.folder ?? source);
  const differs = ["started_at", "n_classes", "labels"].some((key) => source[key] && data.source[key] && source[key] !== data.source[key]);
  return differs ? [source.folder ?? source.estimator, source.started_at].filter(Boolean).join(", started ") || "unknown" : null;
}

async function open(file) {
  try {
    const { classes, foreign } = readSelection(await file.text());
    selection.set(classes, `${file.name} opened`);
    const warning = foreign === null ? "" : ` Take care: it was made from another run (${foreign}).`;
    showMessage([element("p", {}, `${file.name}: ${selection.summary()}.${warning}`)]);
  } catch (error) {
    showMessage([element("p", { class: "wrong" }, `${file.name}: ${error.message}`)]);
  }
}

function showMessage(content) {
  const close = element("button", { type: "button" }, "Close");
  close.addEventListener("click", () => (byId("saved").hidden = true));
  byId("saved").replaceChildren(...content, close);
  byId("saved").hidden = false;
}

function startFiles() {
  byId("export").addEventListener("click", save);
  byId("picture").addEventListener("click", savePicture);
  byId("import").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", async (event) => {
    if (event.target.files.length) await open(event.target.files[0]);
    event.target.value = "";
  });
}

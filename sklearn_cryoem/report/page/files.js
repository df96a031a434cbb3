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
  const choices = served && served.ok ? Object.entries(COMMANDS).map(([name, what]) => commandButton(name, what)) : [];
  showMessage([element("p", {}, done), element("code", { tabindex: "0" }, command), ...choices]);
}

// What `report --serve` runs with the selection that was saved, one command at a time.
const COMMANDS = { select: "Write the particles", deep: "Divide into sub-classes", clean: "Clean in rounds" };

function commandButton(name, what) {
  const button = element("button", { type: "button", id: `run-${name}`, title: `sklearn-cryoem ${name}` }, what);
  button.addEventListener("click", async () => {
    const answer = await fetch(`run/${name}`, { method: "POST" }).catch(() => null);
    if (answer && answer.ok) await follow();
    else showMessage([element("p", { class: "wrong" }, answer ? await answer.text() : NO_SERVER)]);
  });
  return button;
}

const NO_SERVER = "Nothing answers. Start sklearn-cryoem report --serve again, and open the page that it names.";

// Show what the command says until it ends.
async function follow() {
  const sheet = byId("running");
  const [words, log, link] = ["p", "pre", "a"].map((part) => sheet.querySelector(part));
  byId("saved").hidden = true;
  sheet.hidden = false;
  for (let running = true; running; ) {
    const answer = await fetch("log").catch(() => null);
    const state = answer && answer.ok ? await answer.json() : { command: "", outcome: NO_SERVER, report: "", log: log.textContent };
    running = state.outcome === "running";
    const said = `${state.command} ${state.outcome}`.trim();
    if (words.textContent !== said) words.textContent = said;
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 30;
    log.textContent = state.log;
    if (atEnd) log.scrollTop = log.scrollHeight;
    byId("stop").hidden = !running;
    byId("away").hidden = running;
    link.hidden = !state.report;
    link.href = state.report;
    if (running) await new Promise((done) => setTimeout(done, 500));
  }
}

// A page that is opened again while a command runs shows it.
async function startRunning() {
  byId("stop").addEventListener("click", () => fetch("stop", { method: "POST" }));
  byId("away").addEventListener("click", () => (byId("running").hidden = true));
  if (location.protocol !== "http:") return;
  const answer = await fetch("log").catch(() => null);
  const state = answer && answer.ok ? await answer.json().catch(() => null) : null;
  if (state && state.outcome === "running") await follow();
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
  startRunning();
  byId("export").addEventListener("click", save);
  byId("picture").addEventListener("click", savePicture);
  byId("import").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", async (event) => {
    if (event.target.files.length) await open(event.target.files[0]);
    event.target.value = "";
  });
}

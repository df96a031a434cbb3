// Saving a selection and reading one: {"version": 1, "classes": [numbers from 1], "source": {...}}.
const FORMAT_VERSION = 1;

function asFile() {
  const classes = selection.list().map((k) => k + 1);
  return JSON.stringify({ version: FORMAT_VERSION, classes, source: data.source }) + "\n";
}

function save() {
  const url = URL.createObjectURL(new Blob([asFile()], { type: "application/json" }));
  const link = element("a", { href: url, download: "selection.json" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  const done = `${selection.summary()}. Saved as selection.json.`;
  const command =
    data.folder === null
      ? 'good = select_classes(stack, model.labels_, read_selection("selection.json").labels)'
      : `sklearn-cryoem select ${data.folder} --selection selection.json -o good.star`;
  showMessage([element("p", {}, `${done} These particles:`), element("code", { tabindex: "0" }, command)]);
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
  byId("import").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", async (event) => {
    if (event.target.files.length) await open(event.target.files[0]);
    event.target.value = "";
  });
}

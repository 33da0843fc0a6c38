// The page: what the visitor sees and does. What is computed, model.js computes in a worker.

const $ = (id) => document.getElementById(id);
const before = $("before").getContext("2d", { willReadFrequently: true });
const after = $("after").getContext("2d", { willReadFrequently: true });

let site; // site.json
let worker; // runs one job at a time
let running = null; // the job that it runs: {job, began, pixels}
let next = null; // the job that waits for it: the newest one
let text = ""; // what the worker last said
let picture = null; // {width, height, name, type}: the chosen picture, which the canvas `before` holds
const speed = new Map(); // model -> seconds a pixel, measured

// ---- jobs ----

const model = () => site.models[$("model").selectedIndex];
const at = () => (isNaN($("at").value) ? $("at").value : Number($("at").value));

function newWorker() {
  worker?.terminate();
  worker = new Worker(new URL("model.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => {
    if (data.done) finish(data.done, data.result);
    else if (data.failed !== undefined) fail(data.failed);
    else {
      text = data.text;
      running = { ...running, pixels: data.pixels, share: data.share, began: performance.now() };
      tick();
    }
  };
  worker.onerror = (event) => fail(event.message || "the worker could not be started");
}

/** Run a job once the present one has ended; of several that wait, the newest. */
function ask(job, more = {}) {
  if (running) {
    if (job !== "map" || next?.job !== "translate") next = { job, more };
    return;
  }
  running = { job, began: performance.now(), first: performance.now() };
  $("error").hidden = true;
  $("stop").hidden = job === "open";
  document.body.ariaBusy = "true";
  const sent = { job, site, model: model(), at: at(), ...more };
  if (job !== "open") sent.picture = pixels();
  worker.postMessage(sent, sent.picture ? [sent.picture.data.buffer] : []);
  tick();
}

function finish(job, result) {
  const done = { ...running, seconds: (performance.now() - running.first) / 1000 };
  running = null;
  // With another picture, model or size chosen meanwhile, the result is of something that is no longer shown.
  if (next?.job !== "translate") ({ open: opened, translate: translated, map: mapped })[job](result, done);
  free();
}

function fail(reason) {
  running = null;
  say("");
  const memory = /memory|alloc|std::bad|array buffer/i.test(reason);
  complain(memory ? `There was not enough memory (${reason}). Choose a smaller working size.` : `That did not work: ${reason}`);
  newWorker();
  free();
}

function free() {
  $("stop").hidden = true;
  document.body.ariaBusy = "false";
  if (next) {
    const { job, more } = next;
    next = null;
    ask(job, more);
  }
}

$("stop").onclick = () => {
  running = next = null;
  newWorker();
  say("Stopped");
  free();
};

// ---- words ----

const say = (words) => ($("status").textContent = words);

function complain(words) {
  $("error").textContent = words;
  $("error").hidden = false;
}

const seconds = (s) => (s < 10 ? `${s.toFixed(1)} s` : s < 100 ? `${Math.round(s)} s` : `${Math.round(s / 60)} min`);

/** Say what is being done, for how long it has been, and, where it is known, how long it takes. */
function tick() {
  if (!running) return;
  const gone = (performance.now() - running.began) / 1000;
  const known = running.pixels && speed.has(model().name) ? running.pixels * speed.get(model().name) : 0;
  const share = running.share === null || running.share === undefined ? "" : `, ${Math.round(100 * running.share)} %`;
  const of = known > 1 ? ` of about ${seconds(known)}` : "";
  say(`${text || "Starting"}${share} … ${gone > 0.5 ? seconds(gone) + of : of.replace(" of ", "")}`);
}
setInterval(tick, 250);

// ---- results ----

function opened({ backend }) {
  say(`Ready${backend === "webgpu" ? ", on this device's GPU" : ""}. ${picture ? "" : "Choose a picture."}`);
  const kept = "The page now also works without a network, with the models that were opened once.";
  $("offline").textContent = navigator.serviceWorker?.controller ? kept : "";
}

function translated({ picture: made, working, seconds: took, backend }, { seconds: whole }) {
  const { canvas } = after;
  [canvas.width, canvas.height] = [made.width, made.height];
  after.putImageData(new ImageData(made.data, made.width, made.height), 0, 0);
  canvas.hidden = false;
  speed.set(model().name, took.network / (working[0] * working[1]));
  const on = backend === "webgpu" ? "GPU" : "CPU";
  const carried = working[0] !== made.width || working[1] !== made.height;
  const back = carried ? `, carried back to ${made.width} × ${made.height} in ${seconds(took.back)}` : "";
  $("facts").textContent = `at ${working.join(" × ")} in ${seconds(took.network)} on the ${on}${back}`;
  say(`Translated in ${seconds(whole)}`);
  $("save").disabled = false;
  if ($("looks").open) ask("map", { tap: Number($("tap").value) });
}

/** Draw the entropy map over the picture in grey, as `qsattn map` does. */
function mapped({ logEntropy, w, h, working, padded }) {
  const order = Uint32Array.from(logEntropy.keys()).sort((a, b) => logEntropy[a] - logEntropy[b] || a - b);
  const heat = new ImageData(w, h);
  order.forEach((place, rank) => heat.data.set(colour(1 - rank / Math.max(1, order.length - 1)), 4 * place));
  const small = new OffscreenCanvas(w, h);
  small.getContext("2d").putImageData(heat, 0, 0);
  const { canvas } = before;
  const context = $("heat").getContext("2d");
  const scale = Math.min(1, 1280 / canvas.width);
  const [width, height] = [canvas.width, canvas.height].map((side) => Math.round(side * scale));
  [context.canvas.width, context.canvas.height] = [width, height];
  // An encoder pads all around: its maps are centred on what it saw, of which the picture is the upper left part.
  const { stride } = model().attention.taps.find(({ index }) => index === Number($("tap").value));
  const [left, top] = [(w * stride - padded[0]) / 2 / stride, (h * stride - padded[1]) / 2 / stride];
  const [across, down] = [working[0] / stride, working[1] / stride];
  context.drawImage(small, left, top, across, down, 0, 0, width, height);
  context.globalAlpha = site.grey;
  context.filter = "grayscale(1)";
  context.drawImage(canvas, 0, 0, width, height);
  context.globalAlpha = 1;
  context.filter = "none";
  context.fillStyle = "rgb(255 40 200)";
  const queries = order.slice(0, model().attention.queries);
  for (const place of queries) {
    const x = (((place % w) + 0.5 - left) / across) * width;
    const y = ((Math.floor(place / w) + 0.5 - top) / down) * height;
    context.beginPath();
    context.arc(Math.min(x, width - 1), Math.min(y, height - 1), Math.max(1.5, Math.min(width, height) / 130), 0, 7);
    context.fill();
  }
  const [least, most] = [order[0], order[order.length - 1]].map((place) => Math.exp(logEntropy[place]).toPrecision(3));
  $("mapfacts").textContent = `${w} × ${h} places, entropy ${least} to ${most} nats, ${queries.length} selected`;
  $("heat").dataset.logEntropy = JSON.stringify(Array.from(logEntropy)); // for programs: the numbers themselves
  say("Ready");
}

function colour(warmth) {
  const place = warmth * (site.colours.length - 1);
  const below = Math.min(Math.floor(place), site.colours.length - 2);
  const mix = site.colours[below].map((value, i) => value + (place - below) * (site.colours[below + 1][i] - value));
  return [...mix, 255];
}

$("split").oninput = () => $("compare").style.setProperty("--split", `${$("split").value}%`);

$("save").onclick = async () => {
  const kind = picture.type === "image/jpeg" ? "image/jpeg" : "image/png";
  const file = await new Promise((done) => after.canvas.toBlob(done, kind, 0.95));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = `${picture.name.replace(/\.[^.]*$/, "")}-${model().name}.${kind === "image/png" ? "png" : "jpg"}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
};

// ---- pictures ----

const pixels = () => {
  const { data, width, height } = before.getImageData(0, 0, picture.width, picture.height);
  return { data, width, height };
};

/** Take a file as the picture, and translate it. */
async function take(file, name = file.name || "picture") {
  let bitmap;
  try {
    // Upright, and wide gamuts as sRGB, as in training.
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "default" });
  } catch {
    complain(`${name} is not a picture that this browser can read.`);
    return;
  }
  show(bitmap, name, file.type);
  bitmap.close();
}

function show(source, name, type) {
  const [width, height] = [source.videoWidth ?? source.width, source.videoHeight ?? source.height];
  const { canvas } = before;
  [canvas.width, canvas.height] = [width, height];
  before.drawImage(source, 0, 0);
  try {
    before.getImageData(0, 0, 1, 1);
  } catch {
    complain(`${width} × ${height} pixels are more than this browser can hold; make the picture smaller.`);
    return;
  }
  picture = { width, height, name, type };
  after.canvas.hidden = true;
  $("save").disabled = true;
  $("facts").textContent = $("mapfacts").textContent = "";
  $("compare").style.setProperty("--shape", width / height);
  $("compare").style.setProperty("--wide", width);
  $("stage").hidden = false;
  $("looks").hidden = !model().attention;
  ask("translate");
}

$("file").onchange = () => {
  if ($("file").files.length) take($("file").files[0]);
  $("file").value = ""; // the same file can be chosen again
};
addEventListener("dragover", (event) => (event.preventDefault(), document.body.classList.add("over")));
addEventListener("dragleave", () => document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) take(file);
  else complain("What was dropped is not a file.");
});
addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) take(file);
});

// ---- camera ----

function close() {
  for (const track of $("video").srcObject?.getTracks() ?? []) track.stop();
  $("video").srcObject = null;
  $("viewfinder").hidden = true;
}

$("camera").onclick = async () => {
  try {
    $("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    $("viewfinder").hidden = false;
    await $("video").play();
    $("shoot").focus();
  } catch (error) {
    complain(`The camera cannot be used: ${error.message}`);
  }
};
$("shoot").onclick = () => {
  show($("video"), "camera", "image/jpeg");
  close();
};
$("close").onclick = close;

// ---- start ----

/** Wait until the service worker answers for this page, so that what is loaded from now on is kept. */
async function keep() {
  const { serviceWorker } = navigator;
  if (!serviceWorker) return;
  const claimed = new Promise((done) => serviceWorker.addEventListener("controllerchange", done, { once: true }));
  try {
    await serviceWorker.register("sw.js");
    const patience = new Promise((done) => setTimeout(done, 5000));
    if (!serviceWorker.controller) await Promise.race([claimed, patience]);
  } catch {
    // A browser that forbids it, such as in a private window: the page works, with a network.
  }
}

function choose() {
  const { attention, trained } = model();
  $("looks").hidden = !attention || !picture;
  const taps = (attention?.taps ?? []).map(({ index, name }) => new Option(name === String(index) ? `layer ${index}` : name, index));
  $("tap").replaceChildren(...taps);
  if (attention) $("tap").value = attention.tap;
  const known = $("at").querySelector("[value=trained]");
  known.hidden = known.disabled = trained === null;
  known.textContent = `that of training, ${trained}`;
  if (known.disabled && known.selected) $("at").value = "auto";
  ask(picture ? "translate" : "open");
}

async function begin() {
  await keep();
  site = await (await fetch("site.json")).json();
  newWorker();
  $("model").replaceChildren(...site.models.map(({ name }) => new Option(name.replaceAll("_", " "), name)));
  $("model").onchange = choose;
  $("at").onchange = () => picture && ask("translate");
  $("tap").onchange = () => picture && ask("map", { tap: Number($("tap").value) });
  $("looks").ontoggle = () => $("looks").open && picture && ask("map", { tap: Number($("tap").value) });
  $("camera").hidden = !navigator.mediaDevices?.getUserMedia;
  for (const address of site.examples) {
    const image = Object.assign(new Image(), { src: address, alt: `Example: ${address.split("/").pop()}` });
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.append(image);
    button.onclick = async () => take(await (await fetch(address)).blob(), address.split("/").pop());
    $("examples").append(button);
  }
  $("examples").hidden = !site.examples.length;
  choose();
}

begin().catch((error) => complain(`The page could not be started: ${error.message}`));

// Everything that computes, in a worker of its own so that the page stays awake: Pillow's resizing, the generator,
// the way back to full size (the arithmetic of qsattn_plugin/translation/sizes.py, whose names are used here), and the
// entropy of feature maps (that of qsattn_plugin/attention/entropy.py, as an ONNX file).
//
// A picture is {width, height, data}: RGBA bytes, row by row. "Planes" are three planes of floats, 0 to 255.

// ---- sizes ----

/** Round half to even, as Python does. */
function round(x) {
  const down = Math.floor(x);
  return x - down === 0.5 ? down + (down % 2) : Math.round(x);
}

/** [width, height] of a picture whose shorter side becomes `side`. */
function scaledSize([width, height], side) {
  return [width, height].map((length) => Math.max(1, round((length * side) / Math.min(width, height))));
}

/** [width, height] at which a picture is translated; `at` is a side, "trained", "full", or "auto". */
export function workingSize(size, at, trained, { factor, enlarged }) {
  const side = typeof at === "number" ? at : trained;
  if (at === "full" || side === null) return size;
  const scaled = scaledSize(size, side);
  const near = side / factor <= Math.min(...size) && Math.min(...size) <= side * factor;
  const tooLarge = scaled[0] * scaled[1] > Math.max(size[0] * size[1], enlarged);
  return at === "auto" && (near || tooLarge) ? size : scaled;
}

// ---- Pillow's bicubic filter (Keys, a = -0.5; antialiased where it makes smaller) ----

function keys(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

/** For each of `to` pixels: the first of the `from` pixels that it is made of, and their weights. */
function filter(from, to) {
  const scale = from / to;
  const wide = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - 2 * wide + 0.5));
    const end = Math.min(from, Math.floor(centre + 2 * wide + 0.5));
    const weights = Float64Array.from({ length: end - first }, (_, k) => keys((first + k + 0.5 - centre) / wide));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((w) => w / sum) };
  });
}

/** Bring a plane (h x w) to another width, into a plane of the target's type: bytes are rounded and clamped. */
function resizeRows(plane, h, w, width, target) {
  if (w === width) return target.set(plane), target;
  const columns = filter(w, width);
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < width; x++) {
      const { first, weights } = columns[x];
      let sum = 0;
      for (let k = 0, at = y * w + first; k < weights.length; k++, at++) sum += weights[k] * plane[at];
      target[y * width + x] = sum;
    }
  }
  return target;
}

/** The same for the height. */
function resizeColumns(plane, h, w, height, target) {
  if (h === height) return target.set(plane), target;
  filter(h, height).forEach(({ first, weights }, y) => {
    for (let x = 0; x < w; x++) {
      let sum = 0;
      for (let k = 0, at = first * w + x; k < weights.length; k++, at += w) sum += weights[k] * plane[at];
      target[y * w + x] = sum;
    }
  });
  return target;
}

/** The planes of a picture at another size; between the two directions, values are bytes, as Pillow's. */
export function resizePicture({ width, height, data }, [w, h]) {
  return [0, 1, 2].map((channel) => {
    const plane = new Uint8ClampedArray(width * height);
    for (let i = 0; i < plane.length; i++) plane[i] = data[4 * i + channel];
    const rows = resizeRows(plane, height, width, w, new Uint8ClampedArray(height * w));
    return Float32Array.from(resizeColumns(rows, height, w, h, new Uint8ClampedArray(h * w)));
  });
}

// ---- the way back ----

/** Means of 3 x 3, borders repeated. */
function box(plane, w, h) {
  const rows = new Float32Array(plane.length);
  const out = new Float32Array(plane.length);
  for (let y = 0, i = 0; y < h; y++) {
    for (let x = 0; x < w; x++, i++) rows[i] = plane[x ? i - 1 : i] + plane[i] + plane[x < w - 1 ? i + 1 : i];
  }
  for (let y = 0, i = 0; y < h; y++) {
    for (let x = 0; x < w; x++, i++) out[i] = (rows[y ? i - w : i] + rows[i] + rows[y < h - 1 ? i + w : i]) / 9;
  }
  return out;
}

/** The slope a of a change p over the image i, and its offset p - a i. */
function slopeAndOffset(i, p, w, h, eps, flat) {
  const times = (a, b) => a.map((value, k) => value * b[k]);
  const [bi, bp, bip, bii] = [i, p, times(i, p), times(i, i)].map((plane) => box(plane, w, h));
  const a = bi.map((mean, k) => (flat ? 0 : (bip[k] - mean * bp[k]) / (bii[k] - mean * mean + eps)));
  return [a, p.map((value, k) => value - a[k] * i[k])];
}

/** O = I + up(a) I + up(p - a i), on the picture itself: its data changes, but for alpha. */
export function carryBack(picture, seen, made, [w, h], eps) {
  const { width, height, data } = picture;
  const flat = Math.min(width, height) < Math.min(w, h); // then the picture has no detail that the working size lacks
  const rows = filter(h, height);
  for (let channel = 0; channel < 3; channel++) {
    const change = made[channel].map((value, k) => value - seen[channel][k]);
    const [a, b] = slopeAndOffset(seen[channel], change, w, h, eps, flat).map((plane) =>
      resizeRows(plane, h, w, width, new Float32Array(h * width)),
    );
    for (let y = 0, at = channel; y < height; y++) {
      const { first, weights } = rows[y];
      for (let x = 0; x < width; x++, at += 4) {
        let slope = 0;
        let offset = 0;
        for (let k = 0, from = first * width + x; k < weights.length; k++, from += width) {
          slope += weights[k] * a[from];
          offset += weights[k] * b[from];
        }
        data[at] = offset + data[at] * (1 + slope); // a byte array rounds and clamps
      }
    }
  }
}

// ---- the generator ----

/** Planes as a tensor (1, 3, H, W) in [-1, 1], padded on the right and below to sides that the generator takes. */
function tensorOf(planes, [w, h], { multiple, least }) {
  const padded = (side) => Math.max(Math.ceil(side / multiple) * multiple, least);
  const [W, H] = [padded(w), padded(h)];
  // By reflection where the picture is large enough for that, otherwise its last pixel is repeated.
  const places = (side, to) =>
    Int32Array.from({ length: to }, (_, i) => (i < side ? i : to - side < side ? 2 * side - 2 - i : side - 1));
  const [xs, ys] = [places(w, W), places(h, H)];
  const values = new Float32Array(3 * W * H);
  let at = 0;
  for (const plane of planes) for (const y of ys) for (const x of xs) values[at++] = plane[y * w + x] / 127.5 - 1;
  return new ort.Tensor("float32", values, [1, 3, H, W]);
}

/** The planes of a tensor's first w x h pixels, as whole numbers from 0 to 255. */
function planesOf(tensor, [w, h]) {
  const [, , H, W] = tensor.dims;
  return [0, 1, 2].map((channel) => {
    const plane = new Uint8ClampedArray(w * h);
    for (let y = 0; y < h; y++) {
      for (let x = 0; x < w; x++) plane[y * w + x] = (tensor.data[(channel * H + y) * W + x] + 1) * 127.5;
    }
    return Float32Array.from(plane);
  });
}

let site; // what the exporter wrote about the page
let ort; // the runtime
let backend; // "webgpu" or "wasm"
const sessions = new Map(); // by address

/** A file of the page, whose hash the browser compares. */
async function load({ url, integrity, bytes }) {
  say(`Loading ${url.split("/").pop()}, ${(bytes / 1e6).toFixed(1)} MB`);
  const answer = await fetch(url, { integrity });
  if (!answer.ok) throw new Error(`${url} could not be loaded (${answer.status})`);
  return answer.arrayBuffer();
}

async function start(kind) {
  const { script, wasm } = site.runtime[kind];
  const source = URL.createObjectURL(new Blob([await load(script)], { type: "text/javascript" }));
  ort = await import(source);
  ort.env.wasm.wasmBinary = await load(wasm);
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  ort.env.logLevel = "error";
  backend = kind;
  sessions.clear();
}

async function sessionOf(file, providers = [backend]) {
  if (!sessions.has(file.url)) {
    const bytes = new Uint8Array(await load(file));
    sessions.set(file.url, await ort.InferenceSession.create(bytes, { executionProviders: providers }));
  }
  return sessions.get(file.url);
}

/** The generator's session, once the runtime has made of a probe what PyTorch made of it. */
async function generator(model) {
  if (sessions.has(model.file.url)) return sessions.get(model.file.url);
  try {
    if (!ort) await start((await navigator.gpu?.requestAdapter()) ? "webgpu" : "wasm");
    const session = await sessionOf(model.file);
    say("Comparing with PyTorch");
    const { side, every, values } = model.probe;
    const probe = Float32Array.from({ length: 3 * side * side }, (_, i) => ((i * 7919) % 256) / 127.5 - 1);
    const made = await session.run({ images: new ort.Tensor("float32", probe, [1, 3, side, side]) }, ["translations"]);
    const off = Math.max(...values.map((value, i) => Math.abs(value - made.translations.data[i * every])));
    if (!(off < 2 / 127.5)) throw new Error(`this browser computes something else than PyTorch: by ${off}`);
    return session;
  } catch (error) {
    if (backend !== "webgpu") throw error;
    await start("wasm"); // a GPU, or its driver, that cannot do it
    return generator(model);
  }
}

async function translate({ model, picture, at }) {
  const session = await generator(model);
  const size = [picture.width, picture.height];
  const working = workingSize(size, at, model.trained, site.sizes);
  const began = performance.now();
  say(`Translating at ${working.join(" × ")} pixels`, working[0] * working[1]);
  const seen = resizePicture(picture, working);
  const { translations } = await session.run({ images: tensorOf(seen, working, model) }, ["translations"]);
  const made = planesOf(translations, working);
  translations.dispose();
  const between = performance.now();
  if (size.join() === working.join()) {
    made.forEach((plane, channel) => plane.forEach((value, i) => (picture.data[4 * i + channel] = value)));
  } else {
    say(`Carrying the change back to ${size.join(" × ")} pixels`);
    carryBack(picture, seen, made, working, site.sizes.eps);
  }
  const seconds = { network: (between - began) / 1000, back: (performance.now() - between) / 1000 };
  return [{ picture, working, seconds, backend }, [picture.data.buffer]];
}

// ---- where it looks ----

/** The mask of rows `from` to `to`: 0 where they may attend, -Infinity beyond a local attention's window. */
function maskOf(from, to, w, h, window) {
  const mask = new Float32Array((to - from) * w * h);
  if (!window) return mask;
  const reach = (window - 1) / 2;
  mask.fill(-Infinity);
  for (let row = from; row < to; row++) {
    const [y, x] = [Math.floor(row / w), row % w];
    for (let j = Math.max(0, y - reach); j <= Math.min(h - 1, y + reach); j++) {
      for (let i = Math.max(0, x - reach); i <= Math.min(w - 1, x + reach); i++) mask[((row - from) * h + j) * w + i] = 0;
    }
  }
  return mask;
}

/** log H of every position of a tap, at the size of training; rows are computed in tiles. */
async function map({ model, picture, tap }) {
  const session = await generator(model);
  const { attention } = model;
  const working = workingSize([picture.width, picture.height], "trained", model.trained ?? 256, site.sizes);
  say("Looking at the picture");
  const images = tensorOf(resizePicture(picture, working), working, model);
  const name = `features_${tap}`;
  const features = (await session.run({ images }, [name]))[name];
  const [, channels, h, w] = features.dims;
  const positions = h * w;
  // The CPU, also beside a GPU: saturated rows need full float32.
  const entropies = await sessionOf(attention.file, ["wasm"]);
  const keys = new ort.Tensor("float32", features.data, [channels, positions]);
  const logEntropy = new Float32Array(positions);
  const tile = Math.max(1, Math.floor(2 ** 20 / positions));
  for (let from = 0; from < positions; from += tile) {
    say(`Entropy of ${positions} rows`, 0, from / positions);
    const to = Math.min(positions, from + tile);
    const rows = new Float32Array((to - from) * channels);
    for (let row = from; row < to; row++) {
      for (let c = 0; c < channels; c++) rows[(row - from) * channels + c] = features.data[c * positions + row];
    }
    const queries = new ort.Tensor("float32", rows, [to - from, channels]);
    const mask = new ort.Tensor("float32", maskOf(from, to, w, h, attention.window), [to - from, positions]);
    logEntropy.set((await entropies.run({ queries, keys, mask })).log_entropy.data, from);
  }
  return [{ logEntropy, w, h, working, padded: [images.dims[3], images.dims[2]] }, [logEntropy.buffer]];
}

// ---- the worker ----

const say = (text, pixels = 0, share = null) => postMessage({ text, pixels, share });

const jobs = {
  open: async (asked) => ((site = asked.site), await generator(asked.model), [{ backend }, []]),
  translate,
  map,
};

if (typeof WorkerGlobalScope !== "undefined") {
  addEventListener("message", async ({ data }) => {
    try {
      const [result, moved] = await jobs[data.job](data);
      postMessage({ done: data.job, result }, moved);
    } catch (error) {
      postMessage({ failed: String(error?.message ?? error) });
    }
  });
}

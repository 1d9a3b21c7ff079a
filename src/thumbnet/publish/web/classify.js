// The network runs in this page, by ONNX Runtime Web (`ort`). It gives the answers of `thumbnet predict`.
const CAMERA_RULE = "Some browsers refuse it to a page that is a file: choose a picture, or paste one.";
const MOST_PIXELS = 64_000_000;   // more could be a decompression bomb
const BAND_PIXELS = 4_000_000;    // pixels read from a canvas at a time; phones limit the size of a canvas
const STEPS = 2 ** 22;            // a resizing weight of 1, in Pillow's fixed point
const FAINT = 4 / 255;            // added before logarithms, see thumbnet.classifiers.unlike
const LEAST_SCALE = 1e-6;
const model = JSON.parse($("described").textContent);
const { height, width } = model;

async function unpacked(id) {
  const binary = atob($(id).textContent), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function fromPlanes(planes) {  // see thumbnet.publish.webpage.to_planes
  const content = new Uint8Array(planes.length);
  let at = 0;
  for (let plane = 0; plane < 4; plane++) {
    for (let i = plane; i < content.length; i += 4) content[i] = planes[at++];
  }
  return content;
}

async function started() {
  if (typeof DecompressionStream === "undefined" || typeof WebAssembly === "undefined") {
    throw new Error("This browser is too old for this page, or WebAssembly is off: use Chrome or Edge 97, Firefox 113, Safari 16.5, or newer.");
  }
  ort.env.wasm.numThreads = 1;  // more need a server that isolates the page
  ort.env.wasm.wasmBinary = await unpacked("runtime");
  ort.env.logLevel = "error";
  const network = fromPlanes(await unpacked("network"));
  const session = await ort.InferenceSession.create(network, { executionProviders: ["wasm"] });
  for (const id of ["runtime", "network"]) $(id).remove();
  return session;
}
const session = started();
session.catch(() => {});  // each use reports the error
let last = Promise.resolve();  // the session runs one batch at a time

async function logitsOf(batch) {
  const pixels = new Uint8Array(batch.length * batch[0].length);
  batch.forEach((view, i) => pixels.set(view, i * view.length));
  const input = new ort.Tensor("uint8", pixels, [batch.length, height, width, 3]), network = await session;
  const run = last.then(() => network.run({ pixels: input }));
  last = run.catch(() => {});
  const { data } = (await run).logits, count = model.classes.length;
  return batch.map((_, i) => data.slice(i * count, (i + 1) * count));
}

// --- from a file to pixels

const notAPicture = (reason) => Object.assign(new Error(`not a picture that this browser can read${reason}`), { status: 415 });

// The stored values, without conversion by a colour profile: as Pillow gives them. Browsers turn the picture upright by
// default. The page does not ask for it: Chrome before 112 does not know "from-image", and refuses all options with it.
const decoded = (file) => createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" })
  .catch(() => { throw notAPicture(""); });

// Browsers turn a picture upright by its EXIF, but Chromium does not turn a WebP. So the page takes the orientation out
// of a WebP, for all browsers to decode it as it is stored, and turns it itself.
async function unturned(file) {
  const starts = (bytes, at, text) => [...text].every((letter, i) => bytes[at + i] === letter.charCodeAt(0));
  const head = new Uint8Array(await file.slice(0, 12).arrayBuffer()), stored = { file, orientation: 1 };
  if (!(starts(head, 0, "RIFF") && starts(head, 8, "WEBP"))) return stored;
  const bytes = new Uint8Array(await file.arrayBuffer()), view = new DataView(bytes.buffer);
  try {
    let at = 12;
    while (!starts(bytes, at, "EXIF")) at += 8 + view.getUint32(at + 4, true) + view.getUint32(at + 4, true) % 2;
    const base = at + (starts(bytes, at + 8, "Exif\0\0") ? 14 : 8), little = starts(bytes, base, "II");
    const fields = base + view.getUint32(base + 4, little);
    for (let field = fields + 2; field < fields + 2 + 12 * view.getUint16(fields, little); field += 12) {
      if (view.getUint16(field, little) !== 0x0112) continue;
      const orientation = view.getUint16(field + 8, little);
      view.setUint16(field + 8, 1, little);
      return { file: new Blob([bytes], { type: "image/webp" }), orientation };
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;  // the file ends before an orientation
  }
  return stored;
}

function turned({ pixels, across, down }, orientation) {
  if (!(orientation >= 2 && orientation <= 8)) return { pixels, across, down };
  const swapped = orientation >= 5, found = new Uint8Array(pixels.length);
  const flips = { rows: [3, 4, 6, 7].includes(orientation), columns: [2, 3, 7, 8].includes(orientation) };
  const size = swapped ? { across: down, down: across } : { across, down };
  let at = 0;
  for (let y = 0; y < size.down; y++) {
    for (let x = 0; x < size.across; x++) {
      const [row, column] = swapped ? [x, y] : [y, x];
      const from = 3 * ((flips.rows ? down - 1 - row : row) * across + (flips.columns ? across - 1 - column : column));
      for (let channel = 0; channel < 3; channel++) found[at++] = pixels[from + channel];
    }
  }
  return { pixels: found, ...size };
}

function onBackground(source, target, at) {
  const [red, green, blue] = model.background;
  for (let i = 0; i < source.length; i += 4, at += 3) {
    const alpha = source[i + 3], rest = 255 - alpha;
    if (alpha === 255) { target[at] = source[i]; target[at + 1] = source[i + 1]; target[at + 2] = source[i + 2]; continue; }
    target[at] = Math.round((source[i] * alpha + red * rest) / 255);
    target[at + 1] = Math.round((source[i + 1] * alpha + green * rest) / 255);
    target[at + 2] = Math.round((source[i + 2] * alpha + blue * rest) / 255);
  }
}

function colours(bitmap) {
  const { width: across, height: down } = bitmap, rows = Math.min(down, Math.max(1, Math.floor(BAND_PIXELS / across)));
  const pixels = new Uint8Array(across * down * 3), canvas = make("canvas", { width: across, height: rows });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  for (let top = 0; top < down; top += rows) {
    const some = Math.min(rows, down - top);
    context.clearRect(0, 0, across, rows);
    context.drawImage(bitmap, 0, -top);
    onBackground(context.getImageData(0, 0, across, some).data, pixels, 3 * across * top);
  }
  return { pixels, across, down };
}

// --- resizing, to the bit as Pillow does it

function kernels(side, start, extent, count) {
  const scale = extent / count, support = Math.max(scale, 1), narrowing = 1 / support, found = [];
  for (let place = 0; place < count; place++) {
    const centre = start + (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5)), stop = Math.min(side, Math.trunc(centre + support + 0.5));
    const values = [];
    for (let i = first; i < stop; i++) values.push(Math.max(0, 1 - Math.abs((i - centre + 0.5) * narrowing)));
    const total = values.reduce((sum, value) => sum + value, 0);
    found.push({ first, values: values.map((value) => Math.floor(0.5 + (total === 0 ? value : value / total) * STEPS)) });
  }
  return found;
}

function resampled({ pixels, across, down }, some, vertical) {
  const size = vertical ? [across, some.length] : [some.length, down], step = 3 * (vertical ? across : 1);
  const found = new Uint8Array(3 * size[0] * size[1]);
  let at = 0;
  for (let y = 0; y < size[1]; y++) {
    for (let x = 0; x < size[0]; x++) {
      const { first, values } = some[vertical ? y : x];
      const begin = 3 * (vertical ? first * across + x : y * across + first);
      for (let channel = 0; channel < 3; channel++) {
        let sum = STEPS / 2;
        for (let i = 0, from = begin + channel; i < values.length; i++, from += step) sum += pixels[from] * values[i];
        found[at++] = Math.min(255, Math.floor(sum / STEPS));
      }
    }
  }
  return { pixels: found, across: size[0], down: size[1] };
}

function resized(picture, [left, top, right, bottom], toWidth, toHeight) {
  const { across, down } = picture;
  const columns = kernels(across, left, right - left, toWidth), rows = kernels(down, top, bottom - top, toHeight);
  // Since version 13, Pillow resizes vertically first if the height shrinks much more than the width.
  const verticalFirst = model.vertical_first && down > toHeight && down - toHeight > 2 * (across - toWidth);
  if (verticalFirst) return resampled(resampled(picture, rows, true), columns, false);
  return resampled(resampled(picture, columns, false), rows, true);
}

function halfToEven(value) {
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below % 2) : Math.round(value);
}

function fitted(picture) {
  const { across, down } = picture, whole = [0, 0, across, down];
  if (across === width && down === height) return picture.pixels;
  if (model.fit === "squash") return resized(picture, whole, width, height).pixels;
  const ratios = [width / across, height / down];
  if (model.fit === "pad") {
    const scale = Math.min(...ratios), [w, h] = [across, down].map((side) => Math.max(1, halfToEven(side * scale)));
    const inner = resized(picture, whole, w, h).pixels, canvas = new Uint8Array(3 * width * height);
    const left = Math.floor((width - w) / 2), top = Math.floor((height - h) / 2);
    for (let y = 0; y < h; y++) canvas.set(inner.subarray(3 * w * y, 3 * w * (y + 1)), 3 * ((top + y) * width + left));
    return canvas;
  }
  const scale = Math.max(...ratios), kept = [width / scale, height / scale];
  const left = Math.max(0, (across - kept[0]) / 2), top = Math.max(0, (down - kept[1]) / 2);
  const box = [left, top, Math.min(left + kept[0], across), Math.min(top + kept[1], down)];
  return resized(picture, box.map(Math.fround), width, height).pixels;  // Pillow stores the box as float32
}

// --- several views of a picture, see thumbnet.classifiers.tta

function viewed(pixels, source) {
  const view = new Uint8Array(pixels.length);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [row, column] = source(y, x), from = 3 * (row * width + column);
      for (let channel = 0; channel < 3; channel++) view[at++] = pixels[from + channel];
    }
  }
  return view;
}
const reflected = (place, side) => place < 0 ? -place : place >= side ? 2 * side - 2 - place : place;
const shifted = (pixels, by) => viewed(pixels, (y, x) => [reflected(y + by, height), reflected(x + by, width)]);
const mirrored = (pixels) => viewed(pixels, (y, x) => [y, width - 1 - x]);

async function logits(pixels) {
  const [plain] = await logitsOf([pixels]);
  let { tta } = model;
  if (tta === "adaptive") {
    const [first, second] = [...plain].sort((a, b) => b - a);
    const sure = Math.fround(Math.fround(first - (second ?? first)) * Math.fround(model.temperature)) >= model.sure_lead;
    tta = sure ? "none" : "mirror-shift";
  }
  if (tta === "none") return plain;
  const seen = [pixels, ...(tta === "mirror-shift" ? [shifted(pixels, -1), shifted(pixels, 1)] : [])];
  const others = await logitsOf([...seen.slice(1), ...seen.map(mirrored)]), weights = model.tta_weights[tta];
  const total = plain.map((value) => value * weights[0]);
  others.forEach((row, i) => row.forEach((value, label) => { total[label] += value * weights[i + 1]; }));
  return total;
}

// --- from logits to an answer

function probabilitiesOf(values) {
  if (model.multilabel) return values.map((value) => value >= 0 ? 1 / (1 + Math.exp(-value)) : Math.exp(value) / (1 + Math.exp(value)));
  const largest = Math.max(...values), powers = values.map((value) => Math.exp(value - largest));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

const meanOf = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const deviationOf = (values) => { const mean = meanOf(values); return Math.sqrt(meanOf(values.map((value) => (value - mean) ** 2))); };

function looks(pixels) {
  const channels = [0, 1, 2].map((channel) => Array.from({ length: width * height }, (_, i) => pixels[3 * i + channel] / 255));
  const grey = channels[0].map((red, i) => (red + channels[1][i] + channels[2][i]) / 3);
  const at = (y, x) => grey[Math.min(height - 1, Math.max(0, y)) * width + Math.min(width - 1, Math.max(0, x))];
  let across = 0, down = 0, detail = 0, saturation = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const i = y * width + x, values = channels.map((channel) => channel[i]);
      across += Math.abs(at(y, x + 1) - grey[i]);
      down += Math.abs(at(y + 1, x) - grey[i]);
      detail += Math.abs(4 * grey[i] - at(y, x - 1) - at(y, x + 1) - at(y - 1, x) - at(y + 1, x));
      saturation += Math.max(...values) - Math.min(...values);
    }
  }
  [across, down, detail, saturation] = [across, down, detail, saturation].map((sum) => sum / grey.length);
  const variation = meanOf(channels.map((channel) => deviationOf(channel.map((value, i) => value - grey[i]))));
  const amounts = [deviationOf(grey), (across + down) / 2, detail, saturation, variation];
  return [...channels.map(meanOf), ...amounts.map((amount) => Math.log(amount + FAINT)), Math.log(across + FAINT) - Math.log(down + FAINT)];
}

const SCORES = {
  logit: (values) => -Math.max(...values),
  energy: (values) => { const largest = Math.max(...values); return -largest - Math.log(values.reduce((sum, value) => sum + Math.exp(value - largest), 0)); },
  probability: (values) => { const largest = Math.max(...values); return 1 - 1 / values.reduce((sum, value) => sum + Math.exp(value - largest), 0); },
};

function unlikenessOf(pixels, values) {
  const how = model.unlike;
  if (!how) return null;
  const relative = (value, median, threshold) => (value - median) / Math.max(threshold - median, LEAST_SCALE);
  const away = looks(pixels).map((value, i) => value - how.mean[i]);
  const square = away.reduce((sum, value, i) => sum + value * how.inverse[i].reduce((inner, entry, j) => inner + entry * away[j], 0), 0);
  return Math.max(relative(SCORES[how.score](values.map((value) => value * model.temperature)), how.median, how.threshold),
    relative(Math.sqrt(Math.max(0, square)), how.distance_median, how.distance_threshold));
}

const certaintyOf = (probability) => Object.keys(model.bands).find((name) => probability >= model.bands[name]) ?? "unsure";
const ADVERBS = { sure: "", probable: "probably ", possible: "perhaps ", unsure: "perhaps " };

function inWords(classes, unlike, labels) {
  const [first, second] = classes, certainty = certaintyOf(first.probability);
  if (unlike) return `unlike the training pictures; most like ${first.name}`;
  if (labels) return labels.map(({ name, probability }) => `${ADVERBS[certaintyOf(probability)]}${name}`).join(", ") || "none of the labels";
  if (!second || certainty === "sure") return first.name;
  if (certainty === "unsure") return `not sure: ${first.name} or ${second.name}`;
  return `${ADVERBS[certainty]}${first.name}, or else ${second.name}`;
}

async function classified({ file }) {
  await session;
  const { file: plain, orientation } = await unturned(file), bitmap = await decoded(plain);
  if (bitmap.width * bitmap.height > MOST_PIXELS) throw notAPicture(`: it has ${bitmap.width}x${bitmap.height} pixels`);
  const pixels = fitted(turned(colours(bitmap), orientation));
  bitmap.close();
  const values = Array.from(await logits(pixels)), probabilities = probabilitiesOf(values);
  const ranked = model.classes.map((name, i) => ({ name, probability: probabilities[i], threshold: model.label_thresholds[i] ?? 0.5 }))
    .sort((a, b) => b.probability - a.probability);
  const unlikeness = unlikenessOf(pixels, values), unlike = unlikeness === null ? null : unlikeness > 1;
  const labels = model.multilabel ? ranked.filter(({ probability, threshold }) => probability >= threshold) : null;
  return { classes: ranked.slice(0, BARS), words: inWords(ranked, unlike, labels), certainty: certaintyOf(ranked[0].probability),
    unlike, unlikeness, labels: labels && labels.map(({ name }) => name) };
}

// --- what the page says about itself

const extras = () => [];  // to show where a network looked takes `thumbnet serve`

// A browser may compute wrongly, as Safari 16.4 did. So the page compares the logits of one picture with those that the
// export stored, see thumbnet.publish.webpage.known_logits.
let miscomputes = false;
async function computesOtherwise() {
  const pixels = Uint8Array.from({ length: 3 * height * width }, (_, i) => (i * 37) % 256), [found] = await logitsOf([pixels]);
  const allowed = 1e-3 * Math.max(1, ...model.known_logits.map(Math.abs));  // summing in another order changes far less
  return model.known_logits.some((value, i) => !(Math.abs(found[i] - value) <= allowed));  // also if it is NaN
}

const describedModel = async () => { miscomputes = await computesOtherwise(); return model; };

const aboutService = () => ({ weights: model.weights, classes: model.classes.join(", "), "written by": `thumbnet ${model.written_by}`, "runs on": `ONNX Runtime Web ${model.runtime}` });

// A browser that guards against fingerprinting may give pages other pixels than those of a picture.
function changesPixels() {
  const canvas = make("canvas", { width: 16, height: 16 }), context = canvas.getContext("2d", { willReadFrequently: true });
  const drawn = new ImageData(16, 16);
  drawn.data.forEach((_, i) => { drawn.data[i] = i % 4 === 3 ? 255 : (i * 37) % 256; });
  context.putImageData(drawn, 0, 0);
  return context.getImageData(0, 0, 16, 16).data.some((value, i) => value !== drawn.data[i]);
}

function described() {
  document.title = `${model.run ?? model.network} – thumbnet`;
  if (changesPixels()) $("model").textContent += " This browser changes the pixels that pages read, to guard against fingerprinting: expect wrong answers.";
  if (miscomputes) $("model").textContent += " This browser computes other numbers than the network that was exported: expect wrong answers, and use another browser.";
}

$("licences").addEventListener("toggle", async () => {
  const place = $("licences").querySelector("pre");
  if (!place.textContent) place.textContent = new TextDecoder().decode(await unpacked("licence-texts"));
});

// Stamps: from the binary atlas to pixels on a canvas. Negatives (ink on paper), never smoothed.

export const SIZE = 32;

/** float16 bits -> number. */
function half(bits) {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const sign = bits & 0x8000 ? -1 : 1;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

let halves = null;
function table() {
  if (!halves) {
    halves = new Float32Array(65536);
    for (let bits = 0; bits < 65536; bits += 1) halves[bits] = half(bits);
  }
  return halves;
}

/** An atlas as the server sends it -> Map of source id -> Float32Array of 32 x 32, south to north, east to west. */
export function readAtlas(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const bits = new Uint16Array(buffer, 4 + length);
  const values = table();
  const area = SIZE * SIZE;
  const stamps = new Map();
  header.source_id.forEach((id, n) => stamps.set(id, Float32Array.from(bits.subarray(n * area, (n + 1) * area), (b) => values[b])));
  return stamps;
}

export const STRETCHES = {
  linear: (v) => v,
  sqrt: Math.sqrt,
  asinh: (v) => Math.asinh(10 * v) / Math.asinh(10),
  log: (v) => Math.log1p(1000 * v) / Math.log1p(1000),
};

/** The values at two percentiles of the finite pixels. */
export function cuts(pixels, low, high) {
  const sorted = pixels.filter(Number.isFinite).sort();
  if (!sorted.length) return [0, 1];
  const at = (percent) => sorted[Math.round((percent / 100) * (sorted.length - 1))];
  return [at(low), at(high)];
}

/** A canvas of 32 x 32 with the stamp as a negative, north up, east left. */
export function render(pixels, { stretch, low, high }, range = cuts(pixels, low, high)) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIZE;
  const context = canvas.getContext("2d");
  const image = context.createImageData(SIZE, SIZE);
  const curve = STRETCHES[stretch] ?? STRETCHES.asinh;
  const [bottom, top] = range;
  for (let n = 0; n < SIZE * SIZE; n += 1) {
    const value = pixels[(SIZE - 1 - Math.floor(n / SIZE)) * SIZE + (n % SIZE)];
    const scaled = Math.min(1, Math.max(0, (value - bottom) / (top - bottom || 1)));
    const ink = Number.isFinite(value) ? 255 - Math.round(255 * curve(scaled)) : 200;
    image.data.set([ink, ink, ink, 255], 4 * n);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** A saliency map over paper: one hue for what speaks for the class, another for what speaks against it. */
export function renderMap(rows, positive, negative) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIZE;
  const context = canvas.getContext("2d");
  const most = Math.max(...rows.flat().map(Math.abs), 1e-12);
  rows.forEach((row, y) =>
    row.forEach((value, x) => {
      context.globalAlpha = Math.min(1, Math.abs(value) / most);
      context.fillStyle = value > 0 ? positive : negative;
      context.fillRect(x, SIZE - 1 - y, 1, 1);
    }),
  );
  return canvas;
}

/** Draws a rendered stamp large, with crosshair, compass and scale bar. */
export function enlarge(canvas, stamp, { pixelArcsec = null, marks = true } = {}) {
  const side = 512; // twice what is shown, for sharp marks on any screen
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(stamp, 0, 0, side, side);
  if (!marks) return;
  const unit = side / SIZE;
  // the source is in pixel [16, 16] of rows that begin in the south
  const x = 16.5 * unit;
  const y = (SIZE - 16.5) * unit;
  const line = (points, stroke, width) => {
    context.beginPath();
    for (const [x0, y0, x1, y1] of points) {
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
    }
    context.strokeStyle = stroke;
    context.lineWidth = width;
    context.stroke();
  };
  const drawTwice = (points) => {
    line(points, "rgba(255,255,255,.85)", 8);
    line(points, "#1d4fd7", 3.2);
  };
  drawTwice([[x - 80, y, x - 36, y], [x, y - 80, x, y - 36]]);
  drawTwice([[48, 88, 48, 32], [48, 88, 16, 88], [48, 32, 40, 44], [48, 32, 56, 44]]);
  context.font = "600 30px sans-serif";
  context.lineJoin = "round";
  context.fillStyle = "#1d4fd7";
  const write = (text, at, baseline, align = "left") => {
    context.textAlign = align;
    context.lineWidth = 6;
    context.strokeStyle = "rgba(255,255,255,.9)";
    context.strokeText(text, at, baseline);
    context.fillText(text, at, baseline);
  };
  write("N", 64, 44);
  write("E", 8, 124);
  if (pixelArcsec) {
    const arcsec = [1, 2, 5, 10, 20, 50, 100, 200].findLast((length) => (length / pixelArcsec) * unit < side / 2.4) ?? 1;
    const wide = (arcsec / pixelArcsec) * unit;
    drawTwice([[side - 24 - wide, side - 28, side - 24, side - 28]]);
    write(`${arcsec}″`, side - 24, side - 44, "right");
  }
}

// The film strip: a lane for each band, each stamp under its epoch.

import { BANDS, colour } from "./lib.js";
import { FONT, LEFT, prepare } from "./timeline.js";

export const STAMP = 34;
const LANE = 42;
const TOP = 5;

export class Film {
  /** `images(epoch)` gives a rendered stamp, null where there is none of this kind, undefined while it is being fetched. */
  constructor(box, axis, bands, images) {
    this.box = box;
    this.axis = axis;
    this.bands = bands;
    this.images = images;
    this.lanes = [...BANDS].filter((band) => bands.includes(band));
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("aria-hidden", "true");
    box.style.height = `${this.height}px`;
    box.append(this.canvas);
  }

  get height() {
    return this.lanes.length * LANE + 2 * TOP - 2;
  }

  epochsOf(lane) {
    return [...this.bands.keys()].filter((epoch) => this.bands[epoch] === lane);
  }

  get mostInLane() {
    return Math.max(...this.lanes.map((lane) => this.epochsOf(lane).length));
  }

  /** The epochs of a lane whose stamps are drawn: from left to right, without overlap; the others get a tick. */
  shown(lane, epochs) {
    let right = -Infinity;
    return epochs.filter((epoch) => {
      const left = this.axis.px(this.axis.of(epoch)) - STAMP / 2;
      if (left < right + 1) return false;
      right = left + STAMP;
      return true;
    });
  }

  /** The epoch under a place of the strip: the nearest in the lane there. */
  hit(x, y) {
    const lane = this.lanes[Math.min(this.lanes.length - 1, Math.max(0, Math.floor((y - TOP) / LANE)))];
    return this.axis.nearest(x, this.epochsOf(lane));
  }

  draw(current, off) {
    const { axis } = this;
    const context = prepare(this.canvas, axis.width, this.height);
    context.font = `600 ${FONT.replace("11px", "13px")}`;
    this.cursorLine(context, current);
    context.save();
    context.beginPath();
    context.rect(LEFT - STAMP / 2, 0, axis.width, this.height);
    context.clip();
    this.lanes.forEach((lane, row) => this.drawLane(context, lane, TOP + row * LANE, off, current));
    context.restore();
    this.lanes.forEach((lane, row) => {
      context.fillStyle = colour("--card");
      context.fillRect(0, TOP + row * LANE, LEFT - STAMP / 2, LANE);
      context.fillStyle = colour(`--band-${lane}`);
      context.fillText(lane, 8, TOP + row * LANE + STAMP / 2 + 5);
    });
  }

  cursorLine(context, current) {
    context.fillStyle = colour("--focus");
    context.fillRect(axisPx(this.axis, current) - 0.75, 0, 1.5, this.height);
  }

  drawLane(context, lane, top, off, current) {
    const epochs = this.epochsOf(lane);
    const shown = new Set(this.shown(lane, epochs));
    for (const epoch of epochs) {
      const x = axisPx(this.axis, epoch);
      if (x < LEFT - 1) continue; // as the points of the light curve
      if (shown.has(epoch)) this.drawStamp(context, epoch, x, top, off.has(epoch));
      context.fillStyle = colour(shown.has(epoch) ? "--edge" : `--band-${lane}`);
      context.fillRect(x - 1, top + STAMP + 1, 2, shown.has(epoch) ? 2 : 4);
    }
    if (this.bands[current] === lane) this.drawStamp(context, current, axisPx(this.axis, current), top, off.has(current), true);
  }

  drawStamp(context, epoch, x, top, off, current = false) {
    const left = Math.round(x - STAMP / 2);
    const image = this.images(epoch);
    context.fillStyle = colour(image === undefined ? "--raised" : "--card");
    context.fillRect(left, top, STAMP, STAMP);
    context.globalAlpha = off ? 0.25 : 1;
    if (image) context.drawImage(image, left + 1, top + 1, STAMP - 2, STAMP - 2);
    context.globalAlpha = 1;
    context.lineWidth = current ? 2 : 1;
    context.setLineDash(image === null ? [3, 3] : []);
    context.strokeStyle = colour(current ? "--focus" : image === null ? "--edge" : "--line");
    context.strokeRect(left + 0.5, top + 0.5, STAMP - 1, STAMP - 1);
    context.setLineDash([]);
    if (off) strike(context, left, top);
  }
}

const axisPx = (axis, epoch) => axis.px(axis.of(epoch));

function strike(context, left, top) {
  context.beginPath();
  context.moveTo(left + 4, top + STAMP - 4);
  context.lineTo(left + STAMP - 4, top + 4);
  context.strokeStyle = colour("--bad");
  context.lineWidth = 2;
  context.stroke();
}

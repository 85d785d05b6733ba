// How the current epoch is moved: keys, pointer, and a finger that moves the strip under the cursor.

import { byId, typing } from "./lib.js";
import { LEFT } from "./timeline.js";

const FAR = ["PageUp", "PageDown", "Home", "End"]; // of the strip alone: elsewhere they scroll
const MOVES_ITSELF = "[type=radio], summary, .scroll, .tall"; // what uses the arrow keys on its own

export class Steering {
  constructor(page) {
    this.page = page;
    this.slider = byId("film");
    const attributes = { role: "slider", tabindex: 0, "aria-label": "Epoch", "aria-valuemin": 1, "aria-valuemax": page.n };
    for (const [key, value] of Object.entries(attributes)) this.slider.setAttribute(key, value);
    document.addEventListener("keydown", (event) => this.key(event));
    for (const id of ["light", "film", "influence", "classes"]) this.pointer(byId(id));
  }

  key(event) {
    const { page } = this;
    if (typing(event)) return;
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -page.n, End: page.n };
    const onSlider = event.target === this.slider;
    if ((event.key.startsWith("Arrow") && event.target.closest(MOVES_ITSELF)) || (!onSlider && FAR.includes(event.key))) return;
    if (steps[event.key]) page.step(steps[event.key]);
    else if (event.key === " " && (onSlider || event.target === document.body || event.target.id === "main")) page.play();
    else if (event.key === "x") page.whatIf.toggle(page.selected);
    else return;
    event.preventDefault();
  }

  /** The epoch under the pointer; -1 outside of the plots. */
  epochAt(event, box) {
    const plot = event.target.closest(".plot");
    if (!plot) return -1;
    const place = plot.getBoundingClientRect();
    const [x, y] = [event.clientX - place.left, event.clientY - place.top];
    return box.id === "film" ? this.page.film.hit(x, y) : this.page.axis.nearest(x);
  }

  pointer(box) {
    const { page } = this;
    let down = null;
    box.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse") page.hover(this.epochAt(event, box));
      else if (down) this.pan(event, down);
    });
    box.addEventListener("pointerleave", () => page.hover(undefined));
    box.addEventListener("pointerdown", (event) => {
      down = { x: event.clientX, range: page.axis.range };
    });
    for (const end of ["pointerup", "pointercancel"]) {
      box.addEventListener(end, () => {
        if (down?.panned) page.pin(page.selected);
        down = null;
      });
    }
    box.addEventListener("click", (event) => this.click(event, box));
    box.addEventListener("dblclick", () => page.whole());
  }

  click(event, box) {
    const plot = event.target.closest(".plot");
    if (plot?.dataset.dragged) {
      delete plot.dataset.dragged;
      return;
    }
    const epoch = this.epochAt(event, box);
    if (epoch < 0) return;
    this.page.pin(epoch);
    if (box.id === "film" && (event.shiftKey || event.altKey)) this.page.whatIf.toggle(epoch);
  }

  /** A finger moves the strip under the cursor, which stays in the middle. */
  pan(event, down) {
    const { axis } = this.page;
    const [low, high] = down.range;
    if (!down.panned && Math.abs(event.clientX - down.x) < 4) return;
    down.panned = true;
    const moved = ((event.clientX - down.x) / (axis.width - LEFT)) * (high - low);
    axis.follow = true;
    axis.show(low - moved, high - moved);
    this.page.selected = axis.nearest(axis.px((axis.range[0] + axis.range[1]) / 2));
    this.page.update();
  }
}

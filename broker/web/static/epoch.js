// The card of the current epoch: its images of every kind, its numbers, which pixels matter.

import { apiUrl, byId, className, colour, classVariable, copyButton, dateOf, fixed, getJson, h, KINDS, withError } from "./lib.js";
import { unitOf } from "./rows.js";
import { enlarge, renderMap, SIZE } from "./stamps.js";

export class EpochCard {
  constructor(page) {
    this.page = page;
    // kinds that no packet of the object carried have no place
    this.kinds = KINDS.filter((kind) => page.images.has(kind));
    this.figures = Object.fromEntries(this.kinds.map((kind) => [kind, this.figure(kind)]));
    this.facts = h("dl", { class: "facts" });
    this.leave = h("input", { type: "checkbox", onchange: () => page.whatIf.toggle(page.shown) });
    this.ask = h("button", { type: "button", onclick: () => this.saliency() }, "Which pixels matter?");
    this.answer = h("p", { class: "muted small", role: "status" });
    byId("epoch-body").append(
      h("div", { class: `triple ${this.kinds.length < 2 ? "single" : ""}` }, Object.values(this.figures).map(({ figure }) => figure)),
      this.facts,
      h("p", { class: "choices" }, h("label", {}, this.leave, "leave this stamp out"), this.ask),
      this.answer,
    );
  }

  figure(kind) {
    const canvas = h("canvas", { width: 512, height: 512, role: "img" });
    const caption = h("figcaption", {}, kind);
    const press = h("button", { type: "button", onclick: () => this.page.chooseKind(kind) }, canvas);
    return { canvas, caption, figure: h("figure", {}, press, caption) };
  }

  show(epoch) {
    if (epoch !== this.epoch) this.map = null;
    this.epoch = epoch;
    const { epochs } = this.page.data;
    const day = epochs.mjd[epoch] - epochs.mjd[0];
    byId("epoch-title").replaceChildren(`Epoch ${epoch + 1} · `, h("span", { class: `band-${epochs.band[epoch]}` }, epochs.band[epoch]), ` · day ${fixed(day, 1)} · ${this.flux(epoch)}`);
    for (const kind of this.kinds) this.draw(kind, epoch);
    this.facts.replaceChildren(...this.numbers(epoch).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
    this.leave.checked = this.page.off.has(epoch);
    this.ask.disabled = !this.page.whatIf.model;
    if (!this.map) this.answer.textContent = "";
  }

  flux(epoch) {
    const { epochs } = this.page.data;
    const [flux, error] = [epochs.flux[epoch], epochs.flux_error[epoch]];
    if (this.page.light.unit.name === "mag" && epochs.mag[epoch] !== null) return `${withError(epochs.mag[epoch], epochs.mag_error[epoch])} mag`;
    const { text, njy } = unitOf("flux", epochs.flux);
    return flux === null ? "flux unknown" : `${withError(flux / njy, error === null ? null : error / njy)} ${text}`;
  }

  there(kind, epoch) {
    return this.page.data.images[kind]?.includes(epoch) ?? false;
  }

  /** Why an epoch has no image: every packet brings a science image, the others not always. */
  absent(kind) {
    return kind === "science" ? "not kept any more" : "not sent";
  }

  draw(kind, epoch) {
    const { canvas, caption, figure } = this.figures[kind];
    const { images } = this.page;
    const image = images.of(kind, epoch);
    const there = this.there(kind, epoch);
    figure.className = kind === images.kind ? "large" : "";
    caption.textContent = there ? kind : `${kind}: ${this.absent(kind)}`;
    canvas.setAttribute("aria-label", there ? `${kind} stamp of epoch ${epoch + 1}, north up, east left` : `${kind} stamp: ${this.absent(kind)}`);
    if (there && image === undefined) images.load(kind);
    if (!image) {
      canvas.width = canvas.height = 512;
      return;
    }
    enlarge(canvas, this.layered(kind, image), { pixelArcsec: this.page.data.stamp.pixel_arcsec, marks: kind === images.kind });
  }

  /** The stamp, with the saliency map over it where it was asked for. */
  layered(kind, image) {
    const rows = this.map?.maps?.[kind];
    if (!rows) return image;
    const { model } = this.page.whatIf;
    const layer = document.createElement("canvas");
    layer.width = layer.height = SIZE;
    const context = layer.getContext("2d");
    context.globalAlpha = 0.35;
    context.drawImage(image, 0, 0);
    context.globalAlpha = 1;
    context.drawImage(renderMap(rows, colour(classVariable(this.map.class, model.classes)), "#55585e"), 0, 0);
    return layer;
  }

  numbers(epoch) {
    const { epochs, path, stamp } = this.page.data;
    const source = epochs.source_id[epoch];
    const mag = epochs.mag[epoch];
    const { kind, view } = this.page.images;
    const look = { png: new URLSearchParams({ kind, scale: 8, ...view }), fits: new URLSearchParams({ kind }) }; // as it is shown; as it is
    const file = (form) => h("a", { href: apiUrl(path, `/stamps/${source}.${form}?${look[form]}`), download: "" }, form.toUpperCase());
    return [
      ["time", `${String(epochs.utc[epoch]).slice(0, 19).replace("T", " ")} UTC`],
      ["MJD (TAI)", fixed(epochs.mjd[epoch], 5)],
      ["night (UTC date)", dateOf(epochs.night[epoch])],
      ["magnitude", mag === null ? "none (flux is not positive)" : `${withError(mag, epochs.mag_error[epoch])} AB`],
      ["source", h("span", {}, source, copyButton(source, "source id"))],
      ["flags", epochs.flags[epoch].join(", ") || "none"],
      ["pixels", stamp.pixel_arcsec ? `${SIZE} × ${SIZE}, ${fixed(stamp.pixel_arcsec, 2)}″ each` : `${SIZE} × ${SIZE}, scale unknown`],
      ["stamp", this.there(kind, epoch) ? h("span", {}, file("png"), " · ", file("fits")) : this.absent(kind)],
    ];
  }

  async saliency() {
    const { page, epoch } = this;
    const { model, influenceClass } = page.whatIf;
    const source = page.data.epochs.source_id[epoch];
    const query = new URLSearchParams({ model: model.name, source_id: source, ...(influenceClass ? { class: influenceClass } : {}) });
    this.ask.disabled = true;
    this.answer.textContent = "Running the model …";
    try {
      const found = await getJson(apiUrl(page.data.path, `/saliency?${query}`));
      if (this.epoch !== epoch) return;
      this.map = found;
      this.answer.textContent = `Recomputed now by ${model.name}. Coloured: pixels that are evidence for ${className(found.class)}; grey: against it. By ${found.method}.`;
    } catch (error) {
      this.answer.textContent = error.message;
    }
    this.show(this.epoch);
  }
}

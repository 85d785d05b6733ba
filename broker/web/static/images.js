// The images of an object: fetched by kind when they are first wanted, and rendered between the chosen cuts.

import { apiUrl, getBytes, KINDS, report } from "./lib.js";
import { readAtlas, render } from "./stamps.js";

export class Images {
  /** `changed` is called when there are others to draw. */
  constructor(data, changed) {
    Object.assign(this, { data, changed });
    this.kind = KINDS.find((kind) => this.has(kind)) ?? "science";
    this.view = { stretch: "asinh", low: 1, high: 99.7 };
    this.atlases = new Map(); // kind -> Map of source id -> pixels; null while it is on its way
    this.rendered = new Map();
  }

  /** Whether any epoch has an image of this kind. */
  has(kind) {
    return this.data.images[kind]?.length > 0;
  }

  /** Shows another kind. */
  choose(kind) {
    this.kind = kind;
    this.load(kind);
    this.changed();
  }

  async load(kind) {
    if (this.atlases.has(kind) || !this.has(kind)) return;
    this.atlases.set(kind, null);
    try {
      const url = apiUrl(this.data.path, `/atlas/${kind}?revision=${this.data.revision}`);
      this.atlases.set(kind, readAtlas(await getBytes(url)));
    } catch (error) {
      this.atlases.delete(kind);
      report(error);
    }
    this.changed();
  }

  /** The rendered image of an epoch, null where it has none of this kind, undefined while it is being fetched. */
  of(kind, epoch) {
    if (!this.has(kind)) return null;
    const atlas = this.atlases.get(kind);
    const pixels = atlas ? (atlas.get(this.data.epochs.source_id[epoch]) ?? null) : undefined;
    if (!pixels) return pixels;
    const key = `${kind}/${epoch}`;
    if (!this.rendered.has(key)) this.rendered.set(key, render(pixels, this.view));
    return this.rendered.get(key);
  }

  setView(change) {
    Object.assign(this.view, change);
    this.rendered.clear();
    this.changed();
  }
}

// The live page: the newest classifications as rows, filters in the URL, the server's events.

import { byId, getJson, h, lamp, plural, report, typing } from "./lib.js";
import { Filters } from "./filters.js";
import { head, rowOf } from "./list.js";

const KEPT = 100; // rows on the page
const CLOSED = 2;
const RETRY_MS = 3000;
const SILENT_MS = 45_000; // the server says something every 15 s: a longer silence is a connection that broke unseen

class Live {
  constructor(data) {
    this.data = data;
    this.lastEventId = data.last_event_id;
    this.waiting = [];
    this.seen = new Set();
    this.missed = "";
  }

  start() {
    this.body = h("tbody", {});
    byId("rows").append(head(), this.body);
    this.filters = new Filters(byId("filters"), this.data, () => this.again(), { everyModel: true });
    byId("pause").addEventListener("click", () => this.pause());
    document.addEventListener("keydown", (event) => event.key === "p" && !typing(event) && this.pause());
    addEventListener("popstate", () => location.reload());
    addEventListener("pagehide", () => this.source?.close());
    addEventListener("offline", () => this.lost(this.source));
    addEventListener("online", () => this.connect());
    if (this.filters.any) this.again();
    else {
      this.add(this.data.rows, false);
      this.connect();
    }
  }

  get paused() {
    return byId("pause").getAttribute("aria-pressed") === "true";
  }

  /** Other filters: the newest rows that pass them, then the stream of them. */
  async again() {
    this.source?.close();
    this.body.replaceChildren();
    this.seen.clear();
    this.waiting = [];
    try {
      const found = await getJson(`/api/v1/classifications?limit=50&${this.filters.query}`);
      report(null);
      this.lastEventId = found.last_event_id;
      this.add(found.rows, false);
      this.connect();
    } catch (error) {
      report(error);
    }
  }

  /** EventSource reconnects by itself, with the last id; where it gives up (an error page), we make a new one. */
  connect() {
    clearTimeout(this.retry);
    this.source?.close();
    const query = new URLSearchParams(this.filters.query);
    if (this.lastEventId) query.set("last_event_id", this.lastEventId);
    const source = new EventSource(`/api/v1/events?${query}`);
    this.source = source;
    source.addEventListener("classifications", (event) => {
      this.heard(event);
      this.arrive(JSON.parse(event.data).rows);
    });
    source.addEventListener("alive", (event) => this.heard(event));
    source.addEventListener("state", (event) => lamp(JSON.parse(event.data)));
    source.addEventListener("gap", (event) => this.gap(JSON.parse(event.data)));
    source.addEventListener("open", () => {
      document.body.dataset.stream = "open";
      this.heard();
      this.say();
    });
    source.addEventListener("error", () => this.lost(source));
    this.say();
  }

  /** How far the reader has come, and that the connection is there. */
  heard(event) {
    this.lastEventId = event?.lastEventId || this.lastEventId;
    clearTimeout(this.silence);
    this.silence = setTimeout(() => this.connect(), SILENT_MS);
  }

  lost(source) {
    document.body.dataset.stream = "lost";
    lamp(null);
    this.say("The connection is lost. The rows stay; the page reconnects automatically.");
    if (source?.readyState !== CLOSED || source !== this.source) return;
    this.retry = setTimeout(() => this.connect(), RETRY_MS);
  }

  gap({ sentence }) {
    this.missed = sentence;
    this.say();
  }

  arrive(rows) {
    if (this.paused) this.waiting.push(...rows);
    else this.add(rows, true);
    this.say();
  }

  /** Rows come oldest first from the stream, newest first from the list. */
  add(rows, arrived) {
    const fresh = rows.filter((row) => !this.seen.has(`${row.classification_id}${row.model}`));
    for (const row of fresh) this.seen.add(`${row.classification_id}${row.model}`);
    const made = fresh.slice(arrived ? -KEPT : 0).map((row) => rowOf(row, this.data.classes));
    if (arrived) this.body.prepend(...made.map((row) => (row.classList.add("new"), row)).reverse());
    else this.body.append(...made);
    while (this.body.rows.length > KEPT) this.body.lastElementChild.remove();
    if (this.seen.size > 5000) this.seen = new Set([...this.seen].slice(-1000));
    byId("empty").hidden = this.body.rows.length > 0;
    byId("empty").textContent = this.filters.any
      ? "No classification matches these filters yet. New ones appear here automatically; a wider filter may show more."
      : "Nothing has been classified yet. Rows appear here as soon as a worker publishes; the status page shows what is due.";
  }

  pause() {
    const paused = !this.paused;
    byId("pause").setAttribute("aria-pressed", String(paused));
    byId("pause").textContent = paused ? "Resume" : "Pause";
    if (!paused) this.add(this.waiting.splice(0), true);
    this.say();
  }

  say(text) {
    const parts = [text ?? (this.paused ? `Paused: ${plural(this.waiting.length, "row")} waiting.` : "Newest first.")];
    if (this.missed) parts.push(this.missed);
    const said = parts.join(" ");
    if (byId("summary").textContent !== said) byId("summary").textContent = said;
  }
}

export function start(data) {
  new Live(data).start();
}

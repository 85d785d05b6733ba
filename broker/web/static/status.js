// The status page: the books in sentences, what is due, how fast, what has been set aside, and the models' cards.

import { BANDS, byId, bytes, className, classColour, clock, count, dateOf, duration, fixed, getJson, h, lamp, objectUrl, plural, report } from "./lib.js";
import { lines, stackedBars } from "./charts.js";
import { modelCard } from "./cards.js";

const AGAIN_MS = 10_000;
const DECLINED = "var(--edge)";

const cell = (value, kind) => (kind === "l" ? h("td", { class: "l" }, value) : h("td", {}, value));
function table(caption, columns, rows) {
  const head = h("thead", {}, h("tr", {}, columns.map(([text, kind]) => h("th", { scope: "col", class: kind }, text))));
  const body = rows.map((row) => h("tr", {}, row.map((value, n) => (n ? cell(value, columns[n][1]) : h("th", { scope: "row" }, value)))));
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, h("table", {}, h("caption", {}, caption), head, h("tbody", {}, body)));
}
const nothing = (text) => h("p", { class: "muted" }, text);

function fillBooks(status) {
  const { books, state } = status;
  if (!books) {
    byId("books").replaceChildren(nothing(`The books cannot be read at the moment. ${state.redis?.sentence ?? ""}`));
    return;
  }
  const verdict = books.balanced ? h("b", { class: "good" }, "The books balance.") : h("b", { class: "bad" }, "The books do not balance: skyheed audit says where.");
  const parts = books.explained.map(({ name, count: n, sentence }) => [name, count(n), sentence]);
  byId("books").replaceChildren(h("p", { class: "sum" }, verdict, " Everything consumed is stored, a duplicate, skipped or rejected; every object touched is classified, declined or pending."), table("What became of the packets and objects", [["count of", "l"], ["number"], ["meaning", "l"]], parts));
}

function fillDue({ queues, due }) {
  const rows = Object.entries(queues ?? {}).map(([name, q]) => [name, count(q.due), count(q.new), count(q.in_flight), duration(q.oldest_s)]);
  byId("due").replaceChildren(
    rows.length ? table("Waiting objects, by model", [["model", "l"], ["changed"], ["new"], ["in progress"], ["waiting"]], rows) : nothing("The state of the queues is unknown at the moment."),
    due?.length ? h("details", {}, h("summary", {}, `Which and why: ${plural(due.length, "object")}`), h("ul", {}, due.map((one) => h("li", {}, h("a", { href: objectUrl(one.path) }, one.object_id), ` · ${one.model} · ${one.why}`)))) : "");
}

function fillSpeed(status) {
  const { latency_ms: latency, throughput, lag } = status;
  const after = (percentile) => (latency?.n ? duration(latency[percentile] / 1000) : "–");
  const behind = (lag ?? []).reduce((sum, one) => sum + (one.messages ?? 0), 0);
  const hours = [...new Set((throughput ?? []).map((one) => one.hour_ms))].sort((a, b) => a - b).map((at) => ({
    at, parts: ["classified", "declined"].map((name) => [name, throughput.filter((one) => one.hour_ms === at).reduce((sum, one) => sum + one[name], 0)]),
  }));
  byId("speed").replaceChildren(
    h("dl", { class: "facts" }, [
      ["alert to classification, median", after("p50")], ["90 %", after("p90")], ["99 %", after("p99")], ["of", plural(latency?.n ?? 0, "classification")],
      ["alerts not yet read", lag?.length ? count(behind) : "–"],
    ].flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    h("h3", {}, "Classifications per hour"),
    hours.length ? stackedBars("Classifications per hour", hours, (name) => (name === "declined" ? DECLINED : "var(--focus)"), (ms) => clock(ms).slice(5, 16), 340) : nothing("None yet."));
}

function fillParts({ state, daemons }) {
  const part = (name, { ok, sentence }) => [name, h("span", { class: ok ? "good" : "bad" }, ok ? "runs" : "unavailable"), sentence];
  const rows = [part("Kafka", state.kafka), part("Redis", state.redis), ["index", plural(state.index.objects, "object"), state.index.sentence], ["recomputing", h("span", { class: state.recompute.ok ? "good" : "bad" }, state.recompute.ok ? "runs" : "off"), state.recompute.sentence]];
  const alive = (daemons ?? []).map((one) => [one.name, duration(one.age_s), Object.entries(one.waiting ?? {}).map(([on, s]) => `waiting for ${on} ${typeof s === "number" ? duration(s) : ""}`).join(", ") || "working"]);
  byId("parts").replaceChildren(table("What this page reads", [["part", "l"], ["state", "l"], ["says", "l"]], rows), alive.length ? table("Daemons, and when they last reported", [["daemon", "l"], ["ago"], ["doing", "l"]], alive) : nothing("No daemon has reported: skyheed ingest and skyheed work do so every few seconds while they run."));
}

function fillNights({ shares: nights, models }) {
  const counted = (nights ?? []).flatMap((one) => Object.keys(one.counts)).filter((name) => name !== "declined");
  const classes = [...new Set([...models.flatMap((model) => model.classes), ...counted])];
  const names = [...new Set((nights ?? []).map((one) => one.model))];
  if (!names.length) {
    byId("nights").replaceChildren(nothing("Nothing has been classified yet."));
    return;
  }
  const chart = (name) => {
    const rows = nights.filter((one) => one.model === name).sort((a, b) => a.night - b.night).map((one) => ({ at: one.night, parts: Object.entries(one.counts).sort((a, b) => order(classes, a[0]) - order(classes, b[0])) }));
    return [h("h3", {}, name || "classifications"), stackedBars(`Classes by night, ${name}`, rows, (part) => (part === "declined" ? DECLINED : classColour(part, classes)), dateOf, Math.max(300, byId("nights").clientWidth))];
  };
  const legend = [...classes, "declined"].map((name) => h("span", {}, h("i", { class: "dot", style: { background: name === "declined" ? DECLINED : classColour(name, classes) } }), className(name)));
  byId("nights").replaceChildren(h("div", { class: "legend" }, legend), ...names.flatMap(chart));
}
const order = (classes, name) => (name === "declined" ? 99 : classes.indexOf(name));

function fillDrift({ drift, drift_reference: reference, state }) {
  const bands = [...BANDS].filter((band) => (drift ?? []).some((one) => one.band === band));
  if (!bands.length) {
    byId("drift").replaceChildren(nothing(drift && !state.index.objects ? "No stamps yet." : "The stamps of the last nights are being examined; this takes a few seconds."));
    return;
  }
  const paint = (band) => `var(--band-${band})`;
  // nights are evenly spaced, however far apart they are
  const nights = [...new Set(drift.map((one) => one.night))].sort((a, b) => a - b);
  const series = (value) => bands.map((band) => ({ name: band, points: drift.filter((one) => one.band === band).sort((a, b) => a.night - b.night).map((one) => ({ at: nights.indexOf(one.night), ...value(one) })) }));
  const trained = (value) => bands.filter((band) => reference?.bands?.[band]).map((band) => ({ name: band, ...value(reference.bands[band]) })).filter((one) => Number.isFinite(one.value));
  const figure = (title, value, compared = true) => h("div", {}, h("h3", {}, title), lines(title, series(value), paint, (n) => dateOf(nights[n]), { reference: compared ? trained(value) : [], wide: 300, floor: compared ? null : 0 }));
  const legend = bands.map((band) => h("span", { class: `band-${band}` }, band));
  byId("drift").replaceChildren(
    h("div", { class: "legend" }, legend, h("span", {}, reference?.sentence ?? "No model's card is available here: there is nothing to compare with.")),
    h("div", { class: "figures" },
      figure("Flux, µJy", ({ flux }) => range(flux, (value) => (known(value) ? value / 1000 : NaN))),
      figure("Width of the source, pixels", (one) => ({ value: one.width ?? NaN })),
      figure("Background noise, 100 nJy per pixel", ({ background }) => range(background, (value) => value ?? NaN)),
      figure("Stamps examined", (one) => ({ value: one.n }), false)),
    h("p", { class: "muted small" }, "Median and the range of 68 % of a sample of each night's stamps."));
}
const known = (value) => value !== null && value !== undefined;
/** A median with the range of 68 %, whose ends may be unknown. */
function range(given, to) {
  const [low, value, high] = ["p16", "p50", "p84"].map((name) => to(given?.[name]));
  return { value, low: Number.isFinite(low) ? low : value, high: Number.isFinite(high) ? high : value };
}

function fillDead({ dead_letters: dead }) {
  const letters = dead?.letters ?? [];
  const reasons = Object.entries(dead?.reasons ?? {}).map(([reason, n]) => `${reason.replaceAll("_", " ")} ${n}`);
  if (!letters.length) {
    byId("dead").replaceChildren(nothing("No packet has been set aside."));
    return;
  }
  const rows = letters.map((letter) => [letter.reason.replaceAll("_", " "), letter.error.replace(`${letter.reason}: `, ""), h("span", { class: "mono" }, letter.source), bytes(letter.bytes), clock(letter.time_ms), h("button", { type: "button", "aria-label": `Show the packet ${letter.source}`, onclick: () => look(letter.place) }, "Show")]);
  byId("dead").replaceChildren(h("p", { class: "muted" }, `Packets that could not be used, with their reasons: ${reasons.join(", ")}. After a fix, `, h("code", {}, "skyheed redrive"), " sends them through again."), table("Newest dead letters", [["reason", "l"], ["what is wrong", "l"], ["packet", "l"], ["size"], ["when", "l"], ["content", "l"]], rows), h("div", { id: "letter", tabindex: -1 }));
}

async function look(place) {
  const box = byId("letter");
  try {
    const found = await getJson(`/api/v1/dead-letters/${encodeURIComponent(place)}`);
    const hex = found.hex.replaceAll(" ", "").match(/.{1,32}/g)?.map((line, n) => `${(n * 16).toString(16).padStart(4, "0")}  ${line.match(/../g).join(" ")}`).join("\n") ?? "";
    const fields = Object.entries(found.fields ?? {});
    box.replaceChildren(h("h3", {}, `Packet ${found.letter.source}`), table("Headers", [["header", "l"], ["value", "l"]], found.headers), fields.length ? table("What could be read", [["field", "l"], ["value", "l"]], fields) : nothing("Nothing in it could be read."), h("pre", { tabindex: 0, "aria-label": "First bytes" }, hex), found.value_url ? h("a", { href: found.value_url, download: "" }, "the whole packet") : "");
    box.focus();
  } catch (error) {
    box.replaceChildren(h("p", { class: "notice" }, error.message));
  }
}

function fill(status) {
  lamp(status.state);
  fillBooks(status);
  fillDue(status);
  fillSpeed(status);
  fillParts(status);
  fillNights(status);
  fillDrift(status);
  if (!byId("letter")?.hasChildNodes()) fillDead(status);
  byId("summary").textContent = `As of ${clock(status.state.now_ms)}.`;
}

async function again() {
  // what a reader has opened stays as it is
  if (!document.hidden && !byId("main").querySelector("details[open]") && !byId("main").contains(document.activeElement)) {
    await getJson("/api/v1/status").then((status) => (fill(status), report(null)), report);
  }
  setTimeout(again, AGAIN_MS);
}

export function start(data) {
  fill(data);
  byId("models").replaceChildren(...(data.models.length ? data.models.map(modelCard) : [nothing("No model is known: none has published yet, and none is installed here.")]));
  setTimeout(again, AGAIN_MS);
}

// A night's classifications on the sky: an equal-area map (Hammer-Aitoff, right ascension to the left) as SVG.

import { byId, className, classColour, count, dateOf, fixed, getJson, h, objectUrl, plural, report, svg } from "./lib.js";

const [WIDE, TALL] = [1000, 520];
const UNIT = 480 / (2 * Math.SQRT2); // px: the map is 960 wide
const RAD = Math.PI / 180;

/** Right ascension and declination in degrees -> place on the map; the middle is right ascension 180. */
export function project(ra, dec) {
  const longitude = (180 - ra) * RAD;
  const latitude = dec * RAD;
  const depth = Math.sqrt(1 + Math.cos(latitude) * Math.cos(longitude / 2));
  const x = (2 * Math.SQRT2 * Math.cos(latitude) * Math.sin(longitude / 2)) / depth;
  const y = (Math.SQRT2 * Math.sin(latitude)) / depth;
  return [WIDE / 2 + x * UNIT, TALL / 2 - y * UNIT];
}

const path = (points) => `M${points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`;
const steps = (from, to, by) => Array.from({ length: Math.round((to - from) / by) + 1 }, (_, n) => from + n * by);

/** The Galactic plane in equatorial coordinates (J2000 pole: 192.85948, 27.12825; ascending node at l = 32.93192). */
function plane() {
  const points = steps(0, 360, 2).map((l) => {
    const angle = (l - 32.93192) * RAD;
    const pole = 27.12825 * RAD;
    const dec = Math.asin(Math.sin(angle) * Math.cos(pole)) / RAD;
    const ra = (Math.atan2(Math.cos(angle), -Math.sin(angle) * Math.sin(pole)) / RAD + 192.85948 + 360) % 360;
    return [ra, dec];
  });
  points.sort((a, b) => a[0] - b[0]);
  return path(points.map(([ra, dec]) => project(ra, dec)));
}

function grid() {
  const meridians = steps(30, 330, 30).map((ra) => path(steps(-90, 90, 5).map((dec) => project(ra, dec))));
  const parallels = steps(-60, 60, 30).map((dec) => path(steps(0, 360, 5).map((ra) => project(ra, dec))));
  const rim = path([...steps(-90, 90, 3).map((dec) => project(0, dec)), ...steps(-90, 90, 3).reverse().map((dec) => project(360, dec))]);
  const texts = [
    ...steps(60, 300, 60).map((ra) => [project(ra, 0), `${ra / 15}h`]),
    ...[-60, -30, 30, 60].map((dec) => [project(180, dec), `${dec > 0 ? "+" : "−"}${Math.abs(dec)}°`]),
  ];
  return [
    svg("path", { d: rim, class: "rim" }), ...[...meridians, ...parallels].map((d) => svg("path", { d, class: "grid" })), svg("path", { d: plane(), class: "galaxy" }),
    ...texts.map(([[x, y], text]) => svg("text", { x: x + 4, y: y - 4 }, text)),
  ];
}

function point(one, classes) {
  const [x, y] = project(one.ra, one.dec);
  const text = `${one.object_id}: ${one.class ? `${className(one.class)} ${fixed(one.probability)}` : "declined"}`;
  const circle = one.class
    ? svg("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: 2.5 + 2.5 * (one.probability ?? 0), "fill-opacity": 0.8, style: { fill: classColour(one.class, classes) } })
    : svg("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: 3, fill: "none", style: { stroke: "var(--edge)" } });
  circle.append(svg("title", {}, text));
  return svg("a", { href: objectUrl(one.path), "aria-label": text, tabindex: -1 }, circle);
}

function legend(points, classes) {
  const counts = new Map();
  for (const one of points) counts.set(one.class, (counts.get(one.class) ?? 0) + 1);
  const items = [...counts].sort((a, b) => b[1] - a[1]).map(([name, n]) => h("span", {}, h("i", { class: "dot", style: name ? { background: classColour(name, classes) } : { background: "none", border: "1.5px solid var(--edge)" } }), `${name ? className(name) : "declined"} ${n}`));
  return h("div", { class: "legend" }, items, h("span", {}, "dashed: Galactic plane · larger: more probable"));
}

function show(found) {
  const { night, model, points, classes, capped } = found;
  byId("summary").textContent = points.length ? `${capped ? "The first " : ""}${plural(points.length, "object")} whose last epoch was in the night of ${dateOf(night)}, classes by ${model}.` : "";
  byId("empty").hidden = points.length > 0;
  byId("empty").textContent = night
    ? "No object that this model has classified had its last epoch in this night: choose another night or model."
    : "Nothing has been classified yet. The map fills as soon as a worker publishes; the status page shows what is due.";
  byId("filters").hidden = !night;
  byId("sky").parentElement.hidden = !night;
  const map = svg("svg", { viewBox: `0 0 ${WIDE} ${TALL}`, role: "group", "aria-label": `Sky map, right ascension increasing to the left, ${plural(points.length, "object")}` }, grid(), points.map((one) => point(one, classes)));
  const table = h("p", { class: "muted small" }, h("a", { href: `/objects?${new URLSearchParams({ night, model })}` }, "The same as a list"));
  byId("sky").replaceChildren(legend(points, classes), map, table);
}

export function start(data) {
  const nights = h("select", { name: "night" }, (data.nights ?? []).map(({ night, objects }) => h("option", { value: night }, `${dateOf(night)} (${count(objects)})`)));
  nights.value = data.night;
  const models = h("select", { name: "model" }, (data.models ?? []).map((name) => h("option", { value: name }, name || "unnamed")));
  models.value = data.model;
  byId("filters").addEventListener("change", async () => {
    const query = new URLSearchParams({ night: nights.value, model: models.value });
    history.replaceState(null, "", `?${query}`);
    try {
      show(await getJson(`/api/v1/sky?${query}`));
      report(null);
    } catch (error) {
      report(error);
    }
  });
  byId("filters").append(h("label", {}, "night, UTC (objects)", nights), h("label", {}, "classes by", models));
  show(data);
}

// Aladin Lite, loaded from CDS only after a click: the server allows that host for this one view of the page.

import { byId, h } from "./lib.js";

const SOURCE = "https://aladin.cds.unistra.fr/AladinLite/api/v3/3.8.2/aladin.js";
const FIELD_DEG = 0.05;

export function show(data) {
  const box = h("div", { id: "aladin", class: "aladin" });
  const said = h("p", { class: "muted", role: "status" }, "Loading Aladin Lite and sky images from CDS, Strasbourg. CDS sees your address and this position; nothing else on this page leaves the server.");
  byId("main").append(h("section", { class: "card sky", "aria-label": "Aladin Lite" }, said, box, h("p", {}, h("a", { href: location.pathname }, "Close it"))));
  const script = h("script", { src: SOURCE, onload: () => draw(data), onerror: () => (said.textContent = "CDS does not answer, so Aladin Lite cannot be shown. The rest of the page needs no other host.") });
  document.head.append(script);
}

async function draw(data) {
  await window.A.init;
  window.A.aladin("#aladin", { target: `${data.ra} ${data.dec}`, fov: FIELD_DEG, survey: "P/PanSTARRS/DR1/color-z-zg-g" });
}

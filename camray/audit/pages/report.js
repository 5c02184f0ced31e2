// The queue of the report. Rows come from data/*.js, loaded as they are needed; every text of the archive is
// set as text, never as markup. Decisions live in this browser until they are saved to a file.
"use strict";

const config = JSON.parse(document.getElementById("config").textContent);
const byId = (id) => document.getElementById(id);
const PER_PAGE = 48;
const words = (name) => config.titles[name] || name.replaceAll("_", " ");

// ---- rows ------------------------------------------------------------------------------------------------
const rows = new Map(); // file number -> its rows
const waiting = new Map(); // file number -> what to do once they are there
let index = null;

function unpack(text, Type) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Type(bytes.buffer);
}

window.camrayIndex = (packed) => {
  index = {
    rows: packed.rows,
    perFile: packed.perFile,
    verdict: unpack(packed.verdict, Uint8Array),
    flags: unpack(packed.flags, Uint32Array),
    class: unpack(packed.class, Int32Array),
  };
};

window.camrayRows = (number, list) => {
  rows.set(number, list);
  (waiting.get(number) || []).forEach((done) => done());
  waiting.delete(number);
};

function load(source) {
  return new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = source;
    script.onload = done;
    script.onerror = () => failed(new Error(`${source} is missing`));
    document.head.append(script);
  });
}

async function row(place) {
  const number = Math.floor(place / index.perFile);
  if (!rows.has(number)) {
    await new Promise((done) => {
      const first = !waiting.has(number);
      waiting.set(number, [...(waiting.get(number) || []), done]);
      if (first) load(`data/rows-${String(number).padStart(5, "0")}.js`);
    });
  }
  return rows.get(number)[place % index.perFile];
}

// ---- decisions -------------------------------------------------------------------------------------------
const STORE = `camray ${config.explainer}`;
let decisions = {};
try {
  decisions = JSON.parse(localStorage.getItem(STORE) || "{}");
} catch {
  decisions = {};
}
const keyOf = (r) => `${r.shard}\n${r.index}\n${r.sha256 || ""}\n${r.verdict}`;

function decide(r, decision) {
  if (decision) {
    decisions[keyOf(r)] = {
      explainer: config.explainer, shard: r.shard, member: r.member, index: r.index,
      content_sha256: r.sha256 || null, verdict: r.verdict, decision,
      decided_at: new Date().toISOString().slice(0, 19) + "Z",
    };
  } else {
    delete decisions[keyOf(r)];
  }
  try {
    localStorage.setItem(STORE, JSON.stringify(decisions));
  } catch {
    byId("count").textContent = "This browser keeps nothing: save the review before you close the page.";
  }
  showDecided();
}

function showDecided() {
  const count = Object.keys(decisions).length;
  byId("decided").textContent = count;
  byId("save").disabled = count === 0;
}

function save() {
  const list = Object.values(decisions);
  if (!list.length) return;
  const blob = new Blob([JSON.stringify({ camray_review: 1, run_id: config.run, decisions: list }, null, 1)], { type: "application/json" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `camray-review-${config.run}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
}

// ---- small makers ----------------------------------------------------------------------------------------
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((c) => c !== null && c !== undefined));
  return element;
}

const cut = (text, length) => (text && text.length > length ? text.slice(0, length - 1) + "…" : text);
const name = (text, length = 300) => make("bdi", { title: cut(text || "", 1000) }, cut(text || "", length));
const pictureOf = (r) => config.out + r.picture.split("/").map(encodeURIComponent).join("/");

function heatCanvas(r, className) {
  const [height, width] = r.grid;
  const canvas = make("canvas", { class: className, role: "img", "aria-label": "heatmap" });
  canvas.width = width;
  canvas.height = height;
  const pixels = canvas.getContext("2d").createImageData(width, height);
  unpack(r.heat, Uint8Array).forEach((value, i) => {
    pixels.data.set([Math.min(255, value * 1.6), Math.max(0, value - 90), 110 - value / 3, 255], i * 4);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

// A picture of three parts side by side (image, map, blend), or of the blend alone.
function part(r, which, text) {
  const picture = make("img", { src: pictureOf(r), alt: text, loading: "lazy" });
  const place = (parts) => {
    picture.style.objectPosition = parts === 3 ? ["0%", "50%", "100%"][which] : "50%";
    picture.style.aspectRatio = picture.naturalWidth / parts / picture.naturalHeight;
  };
  picture.addEventListener("load", () => place(picture.naturalWidth >= 2.5 * picture.naturalHeight ? 3 : 1));
  return picture;
}

function thumb(r) {
  if (r.picture) {
    return make("img", { class: "thumb", src: pictureOf(r), alt: "", loading: "lazy", width: 168, height: 168 });
  }
  return r.heat ? heatCanvas(r, "thumb") : make("div", { class: "thumb" });
}

// ---- the list --------------------------------------------------------------------------------------------
let chosen = []; // places in the queue that pass the filters
let open = -1; // place within `chosen`

function address() {
  const [page, query] = location.hash.slice(1).split("?");
  return [page || "overview", new URLSearchParams(query || "")];
}

function goTo(page, query) {
  const text = query.toString();
  location.hash = text ? `${page}?${text}` : page;
}

function filtered(query) {
  const verdict = config.verdicts.indexOf(query.get("verdict") || "");
  const flag = config.flags.indexOf(query.get("flag") || "");
  const wanted = query.get("class");
  const found = [];
  for (let i = 0; i < index.rows; i += 1) {
    if (verdict >= 0 && index.verdict[i] !== verdict) continue;
    if (flag >= 0 && !((index.flags[i] >>> flag) & 1)) continue;
    if (wanted && index.class[i] !== Number(wanted)) continue;
    found.push(i);
  }
  return found;
}

async function reviewedOnly(places, which) {
  if (!which) return places;
  const marks = await Promise.all(places.map(async (p) => {
    const r = await row(p);
    return Boolean(r.reviewed || decisions[keyOf(r)]);
  }));
  return places.filter((_, i) => marks[i] === (which === "done"));
}

async function showQueue(query) {
  if (!index) await load("data/index.js");
  fillFilters(query);
  chosen = await reviewedOnly(filtered(query), query.get("review"));
  byId("count").textContent = `${chosen.length.toLocaleString("en")} images`;
  const pages = Math.max(1, Math.ceil(chosen.length / PER_PAGE));
  const wanted = query.get("row");
  open = wanted === null ? -1 : chosen.indexOf(Number(wanted));
  const page = open >= 0 ? Math.floor(open / PER_PAGE) : Math.min(pages - 1, Math.max(0, Number(query.get("page") || 1) - 1));
  const places = chosen.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  const list = await Promise.all(places.map(row));
  byId("cards").replaceChildren(...list.map((r, i) => card(r, places[i], query)));
  byId("page").textContent = `page ${page + 1} of ${pages}`;
  const turn = (by) => () => {
    const other = new URLSearchParams(query);
    other.delete("row");
    other.set("page", page + 1 + by);
    goTo("queue", other);
  };
  byId("back").onclick = turn(-1);
  byId("next").onclick = turn(1);
  byId("back").disabled = page === 0;
  byId("next").disabled = page >= pages - 1;
  if (open >= 0) showDetail(await row(chosen[open]), query);
  else byId("detail").hidden = true;
}

function card(r, place, query) {
  const other = new URLSearchParams(query);
  other.set("row", place);
  const link = make(
    "a", { href: `#queue?${other}` },
    thumb(r),
    make("div", { class: "text" },
      make("span", { class: `verdict verdict-${r.verdict}` }, words(r.verdict)),
      make("span", { class: "name" }, name(r.predicted || (r.class === undefined ? "no prediction" : `class ${r.class}`), 60)),
      make("span", { class: "name quiet" }, name((r.member || "").split("/").pop(), 80)),
      decisionText(r)),
  );
  if (String(place) === query.get("row")) link.setAttribute("aria-current", "true");
  return make("li", {}, link);
}

function decisionText(r) {
  const decision = (decisions[keyOf(r)] || {}).decision || r.reviewed;
  return decision ? make("span", { class: "flag" }, decision) : null;
}

function fillFilters(query) {
  const form = byId("filters");
  const fill = (select, options) => {
    if (select.options.length > 1) return;
    options.forEach(([value, text]) => select.append(make("option", { value }, text)));
  };
  fill(form.elements.flag, config.flags.map((f) => [f, words(f)]));
  fill(form.elements.class, [...new Set(index.class)].filter((c) => c >= 0).sort((a, b) => a - b)
    .map((c) => [c, cut(config.classes[c] || `class ${c}`, 60)]));
  for (const field of ["verdict", "flag", "class", "review"]) form.elements[field].value = query.get(field) || "";
}

// ---- one image -------------------------------------------------------------------------------------------
function showDetail(r, query) {
  const detail = byId("detail");
  detail.hidden = false;
  detail.replaceChildren(
    make("h2", {}, name(r.member, 4096)),
    make("p", {}, make("span", { class: `verdict verdict-${r.verdict}` }, words(r.verdict)), " ",
      ...r.flags.map((f) => make("span", { class: "flag" }, words(f))), decisionText(r)),
    views(r),
    make("div", { class: "facts" },
      make("div", {}, make("h3", {}, "Why it is here"), make("ul", {}, ...(r.why.length ? r.why : ["Nothing was flagged."]).map((w) => make("li", {}, name(w, 600))))),
      make("div", {}, make("h3", {}, "What the model said"), said(r))),
    actions(r, query),
  );
}

function views(r) {
  const box = make("div", { class: "views" });
  if (r.picture) {
    const over = part(r, 2, "the heatmap over the image");
    const slider = make("input", { type: "range", min: 0, max: 100, value: 100, "aria-label": "how much of the overlay is shown" });
    const move = () => { over.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`; };
    slider.addEventListener("input", move);
    move();
    box.append(
      make("figure", {}, part(r, 0, "what the model saw"), make("figcaption", {}, "what the model saw")),
      make("figure", {}, part(r, 1, "where it looked"), make("figcaption", {}, "where it looked")),
      make("figure", {}, make("div", { class: "stack" }, part(r, 0, ""), over), slider, make("figcaption", {}, "both; move the slider")),
    );
  } else if (r.heat) {
    box.append(make("figure", {}, heatCanvas(r, ""), make("figcaption", {}, "where the model looked; no picture was kept")));
  }
  return box;
}

function said(r) {
  const list = make("dl", {});
  const add = (term, ...values) => list.append(make("dt", {}, term), make("dd", {}, ...values));
  (r.top || []).forEach(([label, score]) => add(`${(score * 100).toFixed(1)} %`, name(label, 80)));
  if (r.label !== undefined) add("label", name(r.label, 80));
  if (r.suggested !== undefined) add("suggested", name(r.suggested, 80));
  for (const [column, decimals] of Object.entries(config.shown)) {
    const value = r[column];
    if (value !== undefined) add(words(column), typeof value === "number" ? value.toFixed(decimals) : name(String(value), 80));
  }
  if (r.size) add("size", `${r.size[0]} × ${r.size[1]}`);
  add("shard", name(r.shard, 300));
  add("audit score", String(r.score));
  return list;
}

function actions(r, query) {
  const now = (decisions[keyOf(r)] || {}).decision;
  const button = (decision, text) => make("button", {
    type: "button", "aria-pressed": String(now === decision),
    onclick: () => { decide(r, now === decision ? null : decision); showQueue(query); },
  }, text);
  const step = (by, text) => {
    const b = make("button", { type: "button", onclick: () => walk(by) }, text);
    b.disabled = open + by < 0 || open + by >= chosen.length;
    return b;
  };
  return make("div", { class: "actions" }, step(-1, "Previous"), step(1, "Next"),
    button("accepted", "Accept"), button("problem", "Problem"),
    make("button", { type: "button", onclick: close }, "Back to the list"));
}

function walk(by) {
  const next = open < 0 ? 0 : open + by;
  if (next < 0 || next >= chosen.length) return;
  const [, query] = address();
  query.set("row", chosen[next]);
  query.delete("page");
  goTo("queue", query);
}

function close() {
  const [, query] = address();
  query.delete("row");
  goTo("queue", query);
}

async function mark(decision) {
  if (open < 0) return;
  decide(await row(chosen[open]), decision);
  if (decision && open + 1 < chosen.length) walk(1);
  else showQueue(address()[1]);
}

// ---- pages, keys, theme ----------------------------------------------------------------------------------
async function show() {
  const [page, query] = address();
  const known = byId(page) && byId(page).classList.contains("page") ? page : "overview";
  document.querySelectorAll(".page").forEach((section) => { section.hidden = section.id !== known; });
  document.querySelectorAll("header nav a").forEach((link) => {
    if (link.hash === `#${known}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
  if (known === "queue") {
    try {
      await showQueue(query);
    } catch (error) {
      byId("count").textContent = error.message;
    }
  }
}

const KEYS = {
  j: () => walk(1), k: () => walk(-1), a: () => mark("accepted"), p: () => mark("problem"), u: () => mark(null),
  s: save, f: () => byId("filters").elements.verdict.focus(), Escape: close, "?": () => byId("keys").showModal(),
};
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea, dialog");
  const action = KEYS[event.key];
  if (!action || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key !== "?" && address()[0] !== "queue") return;
  event.preventDefault();
  action();
});
byId("filters").addEventListener("change", () => {
  const [, query] = address();
  for (const field of ["verdict", "flag", "class", "review"]) {
    const value = byId("filters").elements[field].value;
    if (value) query.set(field, value);
    else query.delete(field);
  }
  query.delete("row");
  query.delete("page");
  goTo("queue", query);
});
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("save").addEventListener("click", save);
byId("help").addEventListener("click", () => byId("keys").showModal());
byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("camray theme", root.dataset.theme); } catch { /* a browser that keeps nothing */ }
});
try {
  const kept = localStorage.getItem("camray theme");
  if (kept) document.documentElement.dataset.theme = kept;
} catch { /* a browser that keeps nothing */ }
addEventListener("hashchange", show);
showDecided();
show();

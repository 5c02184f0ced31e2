// The queue of the report. Rows come from data/*.js, loaded as they are needed; every text of the archive is
// set as text, never as markup. Decisions live in this browser until they are saved to a file.
"use strict";

const config = JSON.parse(document.getElementById("config").textContent);
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
    night: unpack(packed.night, Uint8Array),
    error: unpack(packed.error, Uint8Array),
    errors: packed.errors,
    cause: unpack(packed.cause, Uint16Array),
    causes: packed.causes,
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
const keyOfCause = (cause) => `cause\n${cause}`;

// `open` takes back what an audit has taken in already; what is only here is forgotten.
function keep(key, what, decision, known) {
  if (decision || (known && !decisions[key])) {
    decisions[key] = {
      explainer: config.explainer, ...what, decision: decision || "open",
      decided_at: new Date().toISOString().slice(0, 19) + "Z",
    };
  } else {
    delete decisions[key];
  }
  try {
    localStorage.setItem(STORE, JSON.stringify(decisions));
  } catch {
    byId("count").textContent = "This browser keeps nothing: save the review before you close the page.";
  }
  showDecided();
}

function decide(r, decision) {
  const what = { shard: r.shard, member: r.member, index: r.index, content_sha256: r.sha256 || null, verdict: r.verdict };
  keep(keyOf(r), what, decision, r.reviewed);
}

const wordsOf = (decision) => (decision === "open" ? "" : decision);
const causeSaid = (cause) => wordsOf((decisions[keyOfCause(cause)] || {}).decision || config.decided[cause] || "");

function decisionOf(r) {
  const own = decisions[keyOf(r)];
  if (own) return wordsOf(own.decision);
  return (r.cause && decisions[keyOfCause(r.cause)] ? causeSaid(r.cause) : r.reviewed) || "";
}

function showDecided() {
  const count = Object.keys(decisions).length;
  byId("decided").textContent = count;
  byId("save").disabled = count === 0;
  document.querySelectorAll(".causes li").forEach((card) => {
    const said = causeSaid(card.dataset.cause);
    card.querySelector(".decision").textContent = said;
    card.querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.decision === said)));
  });
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
  const picture = make("img", { src: pictureOf(r), alt: text });
  const place = (parts) => {
    picture.style.objectPosition = parts === 3 ? ["0%", "50%", "100%"][which] : "50%";
    picture.style.aspectRatio = picture.naturalWidth / parts / picture.naturalHeight;
  };
  picture.addEventListener("load", () => place(picture.naturalWidth >= 2.5 * picture.naturalHeight ? 3 : 1));
  return picture;
}

const NO_PICTURE = { pruned: "its picture was pruned; camray serve draws it", missing: "its picture is missing" };

function bare(r) {
  const said = make("span", {}, r.error ? words(r.error) : NO_PICTURE[r.lost] || "no picture was kept");
  return make("div", { class: "thumb bare" }, r.heat ? heatCanvas(r, "") : null, said);
}

function thumb(r) {
  if (!r.picture) return bare(r);
  const picture = make("img", { class: "thumb", src: pictureOf(r), alt: "", loading: "lazy", width: 168, height: 168 });
  picture.addEventListener("error", () => picture.replaceWith(bare({ ...r, lost: "missing" })));
  return picture;
}

// ---- the list --------------------------------------------------------------------------------------------
const FIELDS = ["night", "verdict", "flag", "class", "cause", "error", "review"];
let chosen = []; // places in the queue that pass the filters
let open = -1; // place within `chosen`
let last = -1; // the place that was opened last
let listed = ""; // which filters and page the list shows

function address() {
  const [page, query] = location.hash.slice(1).split("?");
  return [page || "overview", new URLSearchParams(query || "")];
}

// `instead`: no new entry in the history of the browser, where one image follows another.
function goTo(page, query, instead = false) {
  const text = query.toString();
  const hash = `#${text ? `${page}?${text}` : page}`;
  if (instead) location.replace(hash);
  else location.hash = hash;
}

function filtered(query) {
  const wanted = (field) => query.get(field) || "";
  const among = (list, field) => (wanted(field) ? list.indexOf(wanted(field)) : null);
  const [verdict, flag, error] = [among(config.verdicts, "verdict"), among(config.flags, "flag"), among(index.errors, "error")];
  const cause = among(index.causes, "cause");
  const night = among(["old", "new"], "night");
  const ofClass = wanted("class") && Number(wanted("class"));
  const found = [];
  for (let i = 0; i < index.rows; i += 1) {
    if (verdict !== null && index.verdict[i] !== verdict) continue;
    if (flag !== null && !(flag >= 0 && (index.flags[i] >>> flag) & 1)) continue;
    if (error !== null && index.error[i] !== error + 1) continue;
    if (cause !== null && index.cause[i] !== cause + 1) continue;
    if (night !== null && index.night[i] !== night) continue;
    if (ofClass !== "" && index.class[i] !== ofClass) continue;
    found.push(i);
  }
  return found;
}

async function reviewedOnly(places, which) {
  if (!which) return places;
  const marks = await Promise.all(places.map(async (p) => {
    const r = await row(p);
    return Boolean(decisionOf(r));
  }));
  return places.filter((_, i) => marks[i] === (which === "done"));
}

async function showQueue(query) {
  if (!index) await load("data/index.js");
  fillFilters(query);
  chosen = await reviewedOnly(filtered(query), query.get("review"));
  byId("count").textContent = `${chosen.length.toLocaleString("en")} ${chosen.length === 1 ? "image" : "images"}`;
  const pages = Math.max(1, Math.ceil(chosen.length / PER_PAGE));
  const wanted = query.get("row");
  open = wanted === null ? -1 : chosen.indexOf(Number(wanted));
  const page = open >= 0 ? Math.floor(open / PER_PAGE) : Math.min(pages - 1, Math.max(0, Number(query.get("page") || 1) - 1));
  await showList(query, page, pages);
  if (open >= 0) showDetail(await row(chosen[open]));
  else hideDetail();
}

// The list stays as it is while images of it are opened: nothing moves under the eye.
async function showList(query, page, pages) {
  const places = chosen.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  const list = await Promise.all(places.map(row));
  const now = `${FIELDS.map((field) => query.get(field) || "")} ${places}`;
  if (now !== listed) byId("cards").replaceChildren(...list.map((r, i) => card(r, places[i], query)));
  listed = now;
  list.forEach((r, i) => {
    const link = byId("cards").children[i].firstChild;
    link.querySelector(".decision").textContent = decisionOf(r);
    if (places[i] === chosen[open]) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  });
  byId("page").textContent = `page ${page + 1} of ${pages}`;
  const turn = (by) => async () => {
    const other = new URLSearchParams(query);
    other.delete("row");
    other.set("page", page + 1 + by);
    goTo("queue", other);
    await show();
    scrollTo(0, 0);
    byId("cards").querySelector("a").focus({ preventScroll: true });
  };
  byId("back").onclick = turn(-1);
  byId("next").onclick = turn(1);
  byId("back").disabled = page === 0;
  byId("next").disabled = page >= pages - 1;
  byId("pager").hidden = pages === 1;
}

function predicted(r) {
  if (r.class === undefined) return make("span", { class: "name" }, "no prediction");
  const was = r.label !== undefined && r.correct === false ? [name(r.label, 40), " → "] : [];
  const sure = r.confidence === undefined ? "" : ` ${(r.confidence * 100).toFixed(1)}\u00a0%`;
  return make("span", { class: "name answer" }, ...was, name(r.predicted || `class ${r.class}`, 60), sure);
}

function card(r, place, query) {
  const other = new URLSearchParams(query);
  other.delete("page");
  other.set("row", place);
  return make("li", { "data-place": place }, make(
    "a", { href: `#queue?${other}` },
    thumb(r),
    make("div", { class: "text" },
      make("span", { class: `verdict verdict-${r.verdict}` }, words(r.verdict)),
      predicted(r),
      make("span", { class: "name quiet" }, name((r.member || "").split("/").pop(), 80)),
      make("span", { class: "flag decision" })),
  ));
}

// Each option says how many images it would leave, the other filters as they are.
function fillFilters(query) {
  const tally = (field, of) => {
    const others = new URLSearchParams(query);
    others.delete(field);
    const counts = new Map();
    const places = filtered(others);
    for (const i of places) for (const value of of(i)) counts.set(value, (counts.get(value) || 0) + 1);
    return [counts, places.length];
  };
  const fill = (field, of, options, always) => {
    const [counts, all] = tally(field, of);
    const select = byId("filters").elements[field];
    const chosenNow = query.get(field) || "";
    const shown = options.filter(([value]) => always || counts.has(value) || String(value) === chosenNow);
    select.replaceChildren(
      make("option", { value: "" }, `all (${all.toLocaleString("en")})`),
      ...shown.map(([value, text]) => make("option", { value }, `${text} (${(counts.get(value) || 0).toLocaleString("en")})`)));
    select.value = chosenNow;
    select.parentElement.hidden = !options.length;
  };
  const bits = (value) => config.flags.filter((_, bit) => (value >>> bit) & 1);
  fill("night", (i) => [["old", "new"][index.night[i]]], [["new", "tonight"], ["old", "before"]], true);
  fill("verdict", (i) => [config.verdicts[index.verdict[i]]], config.verdicts.map((v) => [v, words(v)]), true);
  fill("flag", (i) => bits(index.flags[i]), config.flags.map((f) => [f, words(f)]));
  fill("class", (i) => [index.class[i]], config.classes.map((c, i) => [i, cut(c || `class ${i}`, 60)]));
  fill("cause", (i) => [index.causes[index.cause[i] - 1]], index.causes.map((c) => [c, cut(config.causes[c] || c, 60)]));
  fill("error", (i) => [index.errors[index.error[i] - 1]], index.errors.map((e) => [e, words(e)]));
  byId("filters").elements.review.value = query.get("review") || "";
}

// ---- one image -------------------------------------------------------------------------------------------
function showDetail(r) {
  const detail = byId("detail");
  byId("detail-name").replaceChildren(name(r.member, 4096));
  byId("place").textContent = `${(open + 1).toLocaleString("en")} of ${chosen.length.toLocaleString("en")}`;
  byId("one").replaceChildren(
    make("p", {}, make("span", { class: `verdict verdict-${r.verdict}` }, words(r.verdict)), " ",
      ...r.flags.map((f) => make("span", { class: "flag" }, words(f))),
      decisionOf(r) ? make("span", { class: "flag decision" }, decisionOf(r)) : null),
    views(r),
    make("div", { class: "facts" },
      make("div", {}, make("h3", {}, "Why it is here"), make("ul", {}, ...(r.why.length ? r.why : ["Nothing was flagged."]).map((w) => make("li", {}, name(w, 600))))),
      make("div", {}, make("h3", {}, "What the model said"), said(r))),
  );
  byId("one").scrollTop = 0;
  last = chosen[open];
  // aria-disabled: a button that is disabled loses the focus, and with it the keys
  byId("previous").setAttribute("aria-disabled", String(open === 0));
  byId("following").setAttribute("aria-disabled", String(open === chosen.length - 1));
  const now = decisionOf(r);
  for (const [id, decision] of [["accept", "accepted"], ["problem", "problem"]]) {
    byId(id).setAttribute("aria-pressed", String(now === decision));
    byId(id).onclick = () => mark(now === decision ? null : decision);
  }
  if (!detail.open) {
    detail.showModal();
    byId("one").focus();
  }
}

// The focus goes back to the image that was looked at last.
function hideDetail() {
  if (!byId("detail").open) return;
  byId("detail").close();
  const card = byId("cards").querySelector(`[data-place="${last}"] a`) || byId("cards").querySelector("a");
  if (card) card.focus();
}

function views(r) {
  const box = make("div", { class: "views" });
  box.addEventListener("error", () => box.replaceWith(views({ ...r, picture: undefined, lost: "missing" })), { capture: true, once: true });
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
    box.append(make("figure", {}, heatCanvas(r, ""), make("figcaption", {}, `where the model looked; ${NO_PICTURE[r.lost] || "no picture was kept"}`)));
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

function walk(by) {
  const next = open < 0 ? 0 : open + by;
  if (next < 0 || next >= chosen.length) return;
  const [, query] = address();
  query.set("row", chosen[next]);
  query.delete("page");
  goTo("queue", query, byId("detail").open);
}

function close() {
  const [, query] = address();
  query.delete("row");
  const page = Math.floor(open / PER_PAGE) + 1;
  if (page > 1) query.set("page", page);
  goTo("queue", query, true);
}

async function mark(decision) {
  if (open < 0) return;
  decide(await row(chosen[open]), decision);
  if (decision && open + 1 < chosen.length) walk(1);
  else showQueue(address()[1]);
}

// ---- pages, keys, theme ----------------------------------------------------------------------------------
let shownPage = "";

async function show() {
  const [page, query] = address();
  if (page !== "queue") hideDetail();
  const known = byId(page) && byId(page).classList.contains("page") ? page : "overview";
  document.querySelectorAll(".page").forEach((section) => { section.hidden = section.id !== known; });
  document.querySelectorAll("header nav a").forEach((link) => {
    if (link.hash === `#${known}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
  if (known !== shownPage) scrollTo(0, 0);
  shownPage = known;
  if (known === "queue") {
    try {
      await showQueue(query);
    } catch (error) {
      byId("count").textContent = error.message;
    }
  }
}

// ---- causes: the keys of images, for all images of one ---------------------------------------------------
const causes = [...document.querySelectorAll(".causes li")];
const causeAt = () => causes.indexOf(document.activeElement.closest(".causes li"));
const toCause = (by) => causes.length && causes[Math.min(causes.length - 1, Math.max(0, causeAt() + by))].focus();
const press = (decision) => causeAt() >= 0 && causes[causeAt()].querySelector(`[data-decision="${decision}"]`).click();
const CAUSE_KEYS = {
  j: () => toCause(1), k: () => toCause(-1), a: () => press("accepted"), p: () => press("problem"), u: () => press("open"), s: save,
  "?": showKeys,
};
causes.forEach((card) => {
  card.tabIndex = -1;
  const { cause } = card.dataset;
  card.querySelectorAll("button").forEach((button) => button.addEventListener("click", () => {
    const decision = button.dataset.decision === "open" ? null : button.dataset.decision;
    keep(keyOfCause(cause), { cause }, decision, config.decided[cause]);
  }));
});

const KEYS = {
  j: () => walk(1), k: () => walk(-1), a: () => mark("accepted"), p: () => mark("problem"), u: () => mark(null),
  s: save, f: () => byId("filters").elements.verdict.focus(), Escape: close, "?": showKeys,
  ArrowRight: () => walk(1), ArrowLeft: () => walk(-1),
};
document.addEventListener("keydown", (event) => {
  const arrow = event.key.startsWith("Arrow");
  const typing = event.target.closest("select, textarea, #keys") || (arrow && (open < 0 || event.target.closest("input")));
  const keys = { queue: KEYS, overview: CAUSE_KEYS }[address()[0]] || { "?": KEYS["?"] };
  const action = keys[event.key];
  if (!action || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  action();
});
byId("filters").addEventListener("change", () => {
  const [, query] = address();
  for (const field of FIELDS) {
    const value = byId("filters").elements[field].value;
    if (value) query.set(field, value);
    else query.delete(field);
  }
  query.delete("row");
  query.delete("page");
  goTo("queue", query);
});
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("previous").addEventListener("click", () => walk(-1));
byId("following").addEventListener("click", () => walk(1));
byId("close").addEventListener("click", close);
byId("detail").addEventListener("cancel", (event) => { event.preventDefault(); close(); });
byId("detail").addEventListener("click", (event) => { if (event.target === byId("detail")) close(); });
byId("save").addEventListener("click", save);
addEventListener("hashchange", show);
showDecided();
show();

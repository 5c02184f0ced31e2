// Keys and decisions. A decision counts once the server has answered that it is saved.
"use strict";

const tell = (text) => { byId("told").textContent = text; };
const mayReview = document.body.dataset.review === "yes";
const detail = byId("detail-page");

// ---- who decides -----------------------------------------------------------------------------------------
const reviewer = byId("reviewer");
try {
  if (reviewer) reviewer.value = localStorage.getItem("camray reviewer") || "";
} catch { /* a browser that keeps nothing */ }
if (reviewer) reviewer.addEventListener("change", () => {
  try { localStorage.setItem("camray reviewer", reviewer.value.trim()); } catch { /* as above */ }
});

async function save(what) {
  if (!mayReview) { tell("This server only reads: camray serve OUT --review"); return null; }
  if (!reviewer.value.trim()) { tell("Say who you are first."); reviewer.focus(); return null; }
  try {
    const answer = await fetch("/decide", {
      method: "POST", headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...what, reviewer: reviewer.value.trim() }),
    });
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.error);
    tell("");
    return said;
  } catch (error) {
    tell(`Not saved: ${error.message}`);
    return null;
  }
}

// ---- lists: cards of images, or causes -------------------------------------------------------------------
const causes = [...document.querySelectorAll(".causes li")];
const cards = [...document.querySelectorAll("#cards > li")];
const stops = cards.length ? cards.map((card) => card.querySelector("a")) : causes;
causes.forEach((cause) => { cause.tabIndex = -1; });
const active = () => stops.findIndex((stop) => stop.contains(document.activeElement));

function follow(rel) {
  const link = document.querySelector(`a[rel="${rel}"]`);
  if (link) location.assign(link.href);
}

function walk(by) {
  if (detail) { follow(by > 0 ? "next" : "prev"); return; }
  if (!stops.length) return;
  const next = active() < 0 ? 0 : active() + by;
  if (next >= stops.length) follow("next");
  else if (next < 0) follow("prev");
  else stops[next].focus();
}

async function decideCard(card, decision) {
  const said = await save({ id: card.dataset.id, verdict: card.dataset.verdict, decision });
  if (!said) return;
  const mark = card.querySelector(".decision");
  mark.textContent = said.conflict ? "conflict" : said.decision;
  mark.classList.toggle("conflict", said.conflict);
  mark.title = said.said.join("; ");
  if (decision !== "open") walk(1);
}

async function decideCause(cause, decision) {
  const { explainer } = cause.closest("[data-explainer]").dataset;
  const said = await save({ explainer, cause: cause.dataset.cause, decision });
  if (said) cause.querySelector(".decision").textContent = said.said.join(", ");
}

async function decideOne(decision) {
  const said = await save({ id: detail.dataset.id, verdict: detail.dataset.verdict, decision });
  if (!said) return;
  byId("said").textContent = (said.conflict ? "Conflict: " : "") + said.said.join("; ");
  byId("said").className = said.conflict ? "conflict" : "quiet";
  detail.querySelectorAll("[data-decision]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.decision === said.decision)));
  if (decision === "open" || said.conflict) return;
  if (document.querySelector('a[rel="next"]')) follow("next");
}

function decide(decision) {
  if (detail) decideOne(decision);
  else if (active() >= 0 && cards.length) decideCard(cards[active()], decision);
  else if (active() >= 0) decideCause(causes[active()], decision);
}

causes.forEach((cause) => cause.querySelectorAll("button").forEach((button) => button.addEventListener("click", () => decideCause(cause, button.dataset.decision))));
if (detail) detail.querySelectorAll("button[data-decision]").forEach((button) => button.addEventListener("click", () => decideOne(button.dataset.decision)));

// ---- keys, filters, theme --------------------------------------------------------------------------------
const KEYS = {
  j: () => walk(1), k: () => walk(-1), ArrowRight: () => walk(1), ArrowLeft: () => walk(-1),
  a: () => decide("accepted"), p: () => decide("problem"), u: () => decide("open"),
  "/": () => { const search = document.querySelector('input[type="search"]'); if (search) search.focus(); },
  Escape: () => { if (detail) location.assign(detail.dataset.back); },
  "?": showKeys,
};
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea, dialog");
  const action = KEYS[event.key];
  if (!action || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  action();
});
const filters = byId("filters");
if (filters) {
  filters.addEventListener("submit", () => filters.querySelectorAll("input, select").forEach((field) => { if (!field.value) field.disabled = true; }));
  filters.addEventListener("change", (event) => { if (event.target.matches("label > select") && !event.target.closest("details")) filters.requestSubmit(); });
}
addEventListener("pageshow", () => filters && filters.querySelectorAll("input, select").forEach((field) => { field.disabled = false; }));

// What every page with keys has: elements by their id, light or dark, the list of keys.
"use strict";

const byId = (id) => document.getElementById(id);
const THEME = "camray theme";
const showKeys = () => byId("keys").showModal();
try {
  const kept = localStorage.getItem(THEME);
  if (kept) document.documentElement.dataset.theme = kept;
} catch { /* a browser that keeps nothing */ }
byId("help").addEventListener("click", showKeys);
byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem(THEME, root.dataset.theme); } catch { /* as above */ }
});

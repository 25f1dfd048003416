"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const PER_PAGE = 10, STEPS = 999;
const byId = (id) => document.getElementById(id);
const NAMES = ["number", "firings", "peak", "mean", "purity", "token", "histogram", "top", "lower", "promoted", "demoted",
  "nearest", "together"];
const latents = data.latents.map((row) => Object.fromEntries(NAMES.map((name, i) => [name, row[i]])));
const measured = new Set(latents.map((latent) => latent.number));
const state = { shown: latents, page: 0 };

// text goes into the page by textContent alone: whatever a corpus holds stays text
function make(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "text") node.textContent = value;
    else if (name === "class") node.className = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const count = (n) => n.toLocaleString("en");
const short = (x) => (x === 0 ? "0" : Number(x.toPrecision(3)).toString());
const percent = (share) => `${Number((100 * share).toPrecision(2))} %`;
const words = (context) => context[1].map((token) => data.tokens[token]);

// ---- one dashboard

// the activation that is shaded in full: the middle one of the strongest contexts
function fullShade(latent) {
  const [position, , activations] = latent.top[latent.top.length >> 1];
  return new Map(activations).get(position) ?? STEPS;
}

function contextNode(latent, context) {
  const full = fullShade(latent), [position, , activations, quantile] = context;
  const hot = new Map(activations);
  const value = (q) => short((q / STEPS) * latent.peak);
  const place = quantile === null ? "top" : `quantile ${quantile}`;
  const node = make("p", { class: "text" }, make("span", { class: "where", text: `${place}: ${value(hot.get(position))} ` }));
  words(context).forEach((text, i) => {
    const q = hot.get(i);
    if (q > 0) {
      const span = make("span", { class: i === position ? "hot own" : "hot", title: `activation ${value(q)}`, text });
      span.style.setProperty("--a", Math.min(100, Math.round((100 * q) / full)));
      span.append(make("sub", { text: value(q) }));
      node.append(span);
    } else if (q === -1) node.append(make("span", { class: "none", title: "no activation in the store", text }));
    else node.append(text);
  });
  return node;
}

function tokensNode(heading, pairs) {
  const chips = pairs.map(([token, score]) => make("code", { text: data.tokens[token] }, make("small", { text: score.toFixed(2) })));
  return [make("h3", { text: heading }), make("p", { class: "tokens" }, ...chips)];
}

function latentsNode(heading, pairs, nothing) {
  const items = pairs.flatMap(([number, value], i) => [
    i ? ", " : "",
    measured.has(number) ? make("a", { href: `#latent-${number}`, text: number }) : `${number}`,
    ` (${value.toFixed(2)})`,
  ]);
  return [make("h3", { text: heading }), make("p", {}, ...(items.length ? items : [nothing]))];
}

function histogramNode(latent) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const bins = latent.histogram.length, most = Math.max(...latent.histogram);
  svg.setAttribute("viewBox", `0 0 ${bins * 10} 52`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `Histogram of ${count(latent.firings)} activations from 0 to ${short(latent.peak)}; ` +
    `counts: ${latent.histogram.join(", ")}`);
  latent.histogram.forEach((n, i) => {
    // one firing among thousands is still to be seen
    const height = n ? Math.max(1.5, (50 * n) / most) : 0;
    const bar = document.createElementNS(space, "rect");
    Object.entries({ x: i * 10 + 0.5, y: 51 - height, width: 9, height }).forEach(([k, v]) => bar.setAttribute(k, v));
    svg.append(bar);
  });
  const line = document.createElementNS(space, "line");
  Object.entries({ x1: 0, x2: bins * 10, y1: 51.5, y2: 51.5 }).forEach(([k, v]) => line.setAttribute(k, v));
  svg.append(line);
  return [make("h3", { text: `Activations, 0 to ${short(latent.peak)}` }), svg];
}

function card(latent) {
  const heading = make("h2", { text: `Latent ${latent.number}` });
  const article = make("article", { id: `card-${latent.number}` }, heading);
  if (!latent.firings) {
    article.append(make("p", { class: "stats", text: `Never fires on the ${count(data.n_rows)} rows.` }));
  } else {
    article.append(make("p", { class: "stats", text: `Fires on ${percent(latent.firings / data.n_rows)} of rows ` +
      `(${count(latent.firings)}); peak ${short(latent.peak)}, mean where it fires ${short(latent.mean)}; purity ` +
      `${percent(latent.purity)} on “${data.tokens[latent.token]}”.` }));
    article.append(make("h3", { text: "Strongest contexts" }), ...latent.top.map((c) => contextNode(latent, c)));
    if (latent.lower.length) {
      article.append(make("h3", { text: "Weaker ones" }), ...latent.lower.map((c) => contextNode(latent, c)));
    }
  }
  const left = make("div", {}, ...tokensNode("Promotes (logit weight)", latent.promoted), ...tokensNode("Demotes", latent.demoted));
  const right = make("div", {}, ...(latent.firings ? histogramNode(latent) : []),
    ...latentsNode("Nearest latents (cosine)", latent.nearest, "none"),
    ...latentsNode("Fire together (φ)", latent.together, "none on enough rows"));
  article.append(make("div", { class: "two" }, left, right));
  return article;
}

// ---- which dashboards, in what order

const texts = {
  contexts: (l) => [...l.top, ...l.lower].map((c) => words(c).join("")),
  own: (l) => [...l.top, ...l.lower].map((c) => data.tokens[c[1][c[0]]]),
  promoted: (l) => l.promoted.map(([token]) => data.tokens[token]),
  demoted: (l) => l.demoted.map(([token]) => data.tokens[token]),
};
texts.any = (l) => [...texts.contexts(l), ...texts.promoted(l), ...texts.demoted(l)];

// mulberry32: the same seed gives the same order everywhere
function shuffled(items, seed) {
  let a = seed >>> 0;
  const random = () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const order = items.slice();
  for (let i = order.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

const falling = (key) => (items) => items.slice().sort((a, b) => (b[key] ?? -1) - (a[key] ?? -1) || a.number - b.number);
const orders = {
  number: (items) => items.slice().sort((a, b) => a.number - b.number),
  often: falling("firings"),
  rarely: (items) => items.slice().sort((a, b) => a.firings - b.firings || a.number - b.number),
  peak: falling("peak"),
  purity: falling("purity"),
  random: (items) => shuffled(items, Number(byId("seed").value)),
};

function choose() {
  const number = byId("number").value.trim(), wanted = byId("text").value.toLowerCase(), where = texts[byId("where").value];
  let items = latents;
  if (number !== "") items = items.filter((l) => l.number === Number(number));
  else if (!byId("dead").checked) items = items.filter((l) => l.firings);
  if (wanted) items = items.filter((l) => where(l).some((text) => text.toLowerCase().includes(wanted)));
  state.shown = orders[byId("sort").value](items);
  state.page = 0;
  show();
}

function show() {
  const pages = Math.max(1, Math.ceil(state.shown.length / PER_PAGE));
  state.page = Math.min(Math.max(state.page, 0), pages - 1);
  const start = state.page * PER_PAGE, items = state.shown.slice(start, start + PER_PAGE);
  byId("list").replaceChildren(...items.map(card));
  byId("status").textContent = items.length
    ? `${start + 1}–${start + items.length} of ${count(state.shown.length)} latents` : "No latent fits. Change the search.";
  for (const button of document.querySelectorAll("[data-step]")) {
    button.disabled = Number(button.dataset.step) < 0 ? state.page === 0 : state.page === pages - 1;
  }
}

function turn(step) {
  state.page += step;
  show();
  byId("top").scrollIntoView();
}

function sample() {
  if (byId("sort").value === "random") byId("seed").value = Number(byId("seed").value) + 1;
  byId("sort").value = "random";
  byId("number").value = "";
  choose();
}

function fromAddress() {
  const found = /^#latent-(\d+)$/.exec(location.hash);
  byId("number").value = found ? found[1] : "";
  if (found) byId("text").value = "";
  choose();
  if (found) byId("top").scrollIntoView();
}

byId("search").addEventListener("submit", (event) => event.preventDefault());
for (const id of ["text", "number", "seed"]) byId(id).addEventListener("input", choose);
for (const id of ["where", "sort", "dead"]) byId(id).addEventListener("change", choose);
byId("numbers").addEventListener("change", () => document.body.classList.toggle("numbers", byId("numbers").checked));
byId("sample").addEventListener("click", sample);
for (const button of document.querySelectorAll("[data-step]")) {
  button.addEventListener("click", () => turn(Number(button.dataset.step)));
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const keys = { ArrowLeft: () => turn(-1), ArrowRight: () => turn(1), r: sample, "/": () => byId("text").focus() };
  if (event.key in keys) {
    event.preventDefault();
    keys[event.key]();
  }
});
window.addEventListener("hashchange", fromAddress);
fromAddress();

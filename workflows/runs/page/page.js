"use strict";
// Plots and replies stand compressed at the end of the page; plots are drawn when a reader comes to them.

async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** Calls `action` once, when a reader is about to see `place`. */
function whenNear(place, action) {
  const observer = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    action();
  }, { rootMargin: "400px" });
  observer.observe(place);
}

// Folds

for (const button of document.querySelectorAll("button.fold")) {
  button.addEventListener("click", () => {
    const rows = document.getElementById(button.getAttribute("aria-controls"));
    rows.hidden = !rows.hidden;
    button.setAttribute("aria-expanded", String(!rows.hidden));
  });
}

// A wide table scrolls; the keyboard scrolls what has the focus.
for (const box of document.querySelectorAll(".wide")) {
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
}

// Plots

const NARROW = 600;
const PIXELS_FOR_AN_AXIS = 85;
const PIXELS_FOR_AN_ENTRY = 18;
const MOST_ENTRIES = 10;
let library, figures;

function loadPlots() {
  library ??= unpack("plotly").then(run);
  figures ??= unpack("plots").then(JSON.parse);
  return Promise.all([figures, library]);
}

/** Runs a script from an address, which browsers compile beside the page: it stays usable meanwhile. */
function run(source) {
  const script = document.createElement("script");
  script.src = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  return new Promise((resolve, reject) => {
    script.addEventListener("load", resolve);
    script.addEventListener("error", reject);
    document.head.append(script);
  });
}

async function draw(place) {
  const [found] = await loadPlots();
  const { data, layout } = found[Number(place.dataset.plot)];
  const axes = data[0]?.type === "parcoords" ? data[0].dimensions.length : 0;
  if (axes) place.style.minWidth = `${PIXELS_FOR_AN_AXIS * axes}px`;
  const named = data.filter((trace) => trace.showlegend ?? data.length > 1);
  if (place.clientWidth < NARROW) makeNarrow(layout, named.length);
  place.style.height = `${layout.height}px`;
  await Plotly.newPlot(place, data, layout, { responsive: true, modeBarButtons: [["toImage"]], displaylogo: false });
  performance.mark("drawn");
}

/** Puts the legend, with this many entries, below the plot. */
function makeNarrow(layout, entries) {
  layout.height += PIXELS_FOR_AN_ENTRY * Math.min(entries, MOST_ENTRIES);
  layout.margin = { ...layout.margin, l: Math.min(layout.margin?.l ?? 50, 60), r: 15 };
  layout.legend = { ...layout.legend, orientation: "h", x: 0, y: -0.25, yanchor: "top" };
  if (layout.title) layout.title.font = { size: 14 };
}


// Replies

const AT_ONCE = 20;
const SHOWN = {
  all: ["all", () => true],
  worse: ["worse than before", (item) => item.gain < 0],
  better: ["better than before", (item) => item.gain > 0],
  wrong: ["not fully right", (item, now) => item.unit === "share" && item.scores[now] < 1],
  judged: ["judged worse than before", (item) => item.judged?.outcome === "loss"],
  failed: ["without a reply", (item) => item.failed.length > 0],
};

const OUTCOMES = { win: "the checkpoint is better", tie: "a tie", loss: "the checkpoint is worse" };

function option(value, text = value) {
  const made = element("option", "", text);
  made.value = value;
  return made;
}

function scoreText(score, unit) {
  if (score === undefined) return "";
  return unit === "share" ? `${Math.round(score * 1000) / 10} %` : String(Math.round(score * 1e4) / 1e4);
}

/** What an item says, for the search. */
function textOf(item) {
  item.text ??= [item.id, item.place, ...item.asked, ...Object.values(item.replies).flat(), item.expected ?? ""]
    .join("\n").toLowerCase();
  return item.text;
}

function itemElement(item, models, before) {
  const heading = element("h3", "", item.id ? `${item.suite}: ${item.id}` : item.suite);
  if (item.gain) heading.append(element("span", "change", item.gain > 0 ? "▲ better" : "▼ worse"));
  const failed = item.failed.map((model) => models[model]).join(", ");
  if (failed) heading.append(element("span", "bad", `no reply: ${failed}`));
  if (item.tags.length) heading.append(element("small", "", item.tags.join(", ")));
  if (item.place) heading.append(element("small", "", item.place));
  const found = element("article", `item ${item.gain > 0 ? "better" : item.gain < 0 ? "worse" : ""}`, heading);
  item.asked.forEach((asked, turn) => {
    found.append(element("p", "asked", element("strong", "", asked)));
    const sides = element("div", "sides");
    for (const [model, title] of Object.entries(models)) {
      const reply = item.replies[model]?.[turn];
      const score = turn === item.asked.length - 1 ? scoreText(item.scores[model], item.unit) : "";
      if (reply === undefined && !score) continue;
      const head = element("div", "model", title, model === before ? " (before)" : "", score ? `: ${score}` : "");
      sides.append(element("div", "", head, element("div", "reply", reply ?? "")));
    }
    found.append(sides);
  });
  if (item.judged) {
    const { outcome, reasons } = item.judged;
    const words = reasons.map((reason) => element("small", "", reason));
    found.append(element("p", "soft", `Judge: ${OUTCOMES[outcome] ?? outcome}`, ...words));
  }
  if (item.expected) found.append(element("p", "soft", `Expected: ${item.expected}`));
  return found;
}

async function showReplies() {
  const data = JSON.parse(await unpack("items"));
  const { models, suites, items } = data;
  const form = document.getElementById("filters");
  const { show, before, now, suite, tag, text } = form.elements;
  const list = document.getElementById("shown-replies");
  const more = document.getElementById("more");
  let found = [];

  const hasJudge = items.some((item) => item.judged);
  const kinds = Object.entries(SHOWN).filter(([name]) => name !== "judged" || hasJudge);
  show.append(...kinds.map(([name, [title]]) => option(name, title)));
  for (const [select, name] of [[before, "before"], [now, "now"]]) {
    select.append(...data[name].map((model) => option(model, models[model])));
    form.querySelector(`.${name}`).hidden = data[name].length < 2;
  }
  suite.append(option("", "all"), ...Object.keys(suites).map((name) => option(name)));
  const tags = [...new Set(items.flatMap((item) => item.tags))].sort();
  tag.append(option("", "all"), ...tags.map((name) => option(name)));

  function addSome() {
    const count = list.childElementCount;
    list.append(...found.slice(count, count + AT_ONCE).map((item) => itemElement(item, models, before.value)));
    more.hidden = list.childElementCount >= found.length;
  }

  function filter() {
    for (const item of items) {
      const { unit, lower } = suites[item.suite];
      item.unit = unit;
      item.gain = ((item.scores[now.value] - item.scores[before.value]) * (lower ? -1 : 1)) || 0;
    }
    const words = text.value.trim().toLowerCase();
    const passes = SHOWN[show.value][1];
    const isThere = (item) => data.now.length < 2 || now.value in item.replies || now.value in item.scores;
    found = items.filter((item) => isThere(item) && passes(item, now.value)
      && (!suite.value || item.suite === suite.value)
      && (!tag.value || item.tags.includes(tag.value)) && (!words || textOf(item).includes(words)));
    found.sort((one, other) => one.gain - other.gain);
    const leftOut = data.left_out ? `; ${data.left_out.toLocaleString("en")} whose points differ least are left out` : "";
    form.querySelector("output").textContent =
      `${found.length.toLocaleString("en")} of ${items.length.toLocaleString("en")}, the worst first${leftOut}`;
    list.replaceChildren();
    addSome();
  }

  for (const select of [show, before, now, suite, tag]) select.addEventListener("change", filter);
  text.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    const last = list.childElementCount;
    addSome();
    const next = list.children[last];
    next.tabIndex = -1;
    next.focus({ preventScroll: true });
  });
  filter();
}

// The page

async function start() {
  if (document.getElementById("items")) await showReplies();
  performance.mark("usable");
  const plots = document.querySelectorAll(".plot");
  for (const place of plots) whenNear(place, () => draw(place));
  if (plots.length) loadPlots();
}

start();

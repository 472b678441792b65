"use strict";
// Takes over the changing part of the page every few seconds. It reads, and changes nothing of the search.

const SECONDS = 2;
const NARROW = 600;
const MAX_HEIGHT = 340;
const PARTS = ["state", "pages", "trials"];
const updated = document.getElementById("updated");
let drawn = "";

function time() {
  return new Date().toLocaleTimeString([], { hour12: false });
}

/** Draws the plots anew, if they have changed. */
async function draw(text) {
  if (text === drawn || !globalThis.Plotly) return;
  drawn = text;
  const box = document.getElementById("plots");
  const figures = JSON.parse(text);
  if (box.childElementCount !== figures.length) { // all places are there before the first plot takes its width
    box.replaceChildren(...figures.map(() => document.createElement("div")));
  }
  for (const [number, { data, layout }] of figures.entries()) {
    const place = box.children[number];
    place.classList.add("plot");
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", layout.title?.text ?? "plot");
    layout.height = Math.min(layout.height, MAX_HEIGHT);
    layout.margin = { ...layout.margin, t: 60, b: 50 };
    layout.uirevision = "kept"; // where the reader has zoomed
    if (place.clientWidth < NARROW) {
      layout.margin = { ...layout.margin, l: 50, r: 12 };
      layout.legend = { ...layout.legend, orientation: "h", x: 0, y: -0.25, yanchor: "top" };
      if (layout.title) layout.title.font = { size: 14 };
    }
    place.style.height = `${layout.height}px`;
    await Plotly.react(place, data, layout, { responsive: true, modeBarButtons: [["toImage"]], displaylogo: false });
  }
  performance.mark("drawn");
}

function take(page) {
  for (const id of PARTS) {
    const [now, next] = [document.getElementById(id), page.getElementById(id)];
    if (now.innerHTML !== next.innerHTML) now.replaceChildren(...next.childNodes);
  }
  return page.getElementById("figures").textContent;
}

async function refresh() {
  if (!document.hidden && getSelection().isCollapsed) { // a refresh would lose what the reader has selected
    try {
      const answer = await fetch(`part${location.search}`, { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.statusText);
      const text = await answer.text();
      const figures = take(new DOMParser().parseFromString(text, "text/html"));
      updated.textContent = `updated at ${time()}`;
      updated.className = "";
      await draw(figures);
    } catch (error) {
      if (!updated.className) updated.textContent = `no longer updated since ${time()}: the search has ended or was interrupted`;
      updated.className = "bad";
    }
  }
  setTimeout(refresh, SECONDS * 1000);
}

for (const box of document.querySelectorAll(".wide")) {
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
}
draw(document.getElementById("figures").textContent).finally(() => setTimeout(refresh, SECONDS * 1000));

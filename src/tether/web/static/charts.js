// Charts of series over the steps: one card a subject, drawn by plotly with the page's own colours.

"use strict";

const COLOURS = ["#3b7dd8", "#d9730d", "#2a9d6f", "#9a6fd6", "#c8506e", "#8a7a1f", "#7d8899"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const MOST_POINTS = 3000; // of a live line, before it is fetched anew
const STACKED = "Seconds by phase";

// Plotly is large: the page is there before it.
const plotly = new Promise((resolve) => {
  if (window.Plotly) resolve();
  else document.getElementById("plotly").addEventListener("load", resolve);
});

const own = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Plotly reads tags in names, and a name is not a tag.
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function element(tag, text, kind) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

class Charts {
  constructor(place) {
    this.place = place;
    this.cards = new Map(); // by title
    this.lines = new Map(); // by run and key
    this.due = new Set();
    this.single = new Set(); // what has been logged once
  }

  // Lay out all series of all runs: [{run, series, meanings}], the page's own run first.
  show(runs) {
    this.lines.clear();
    this.single.clear();
    for (const card of this.cards.values()) card.lines = [];
    runs.forEach(({ run, series, meanings }, number) => {
      // What was logged once, where all else goes on, is no curve; the table below has it.
      const least = Object.values(series).some((points) => points.x.length > 4) ? 2 : 1;
      for (const [key, points] of Object.entries(series)) {
        if (points.x.length < least && key.startsWith("metrics/")) this.single.add(`${number}:${key}`);
        else this.add(run, number, key, points, meanings[key], runs.length > 1);
      }
    });
    for (const [title, card] of this.cards) {
      if (!card.lines.length) { card.box.remove(); this.cards.delete(title); }
    }
    this.order(runs[0].meanings);
    this.cards.forEach((card) => this.due.add(card));
    this.draw();
  }

  add(run, number, key, points, meaning, several) {
    const [source, bare] = key.split("/", 2);
    const title = meaning?.chart || meaning?.title || bare.replaceAll("_", " ");
    const card = this.cards.get(title) ?? this.card(title);
    const named = meaning?.title ?? bare;
    const told = source === "monitor" && !title.startsWith("Monitor") ? `${named} (monitor)` : named;
    const line = { key, number, x: points.x, y: points.y, name: told, run, several, meaning, told };
    if (card.lines.length === 0) card.words.replaceChildren();
    if (meaning && !card.lines.some((one) => one.key === key)) this.explain(card, meaning);
    card.lines.push(line);
    this.lines.set(`${number}:${key}`, { line, card });
  }

  card(title) {
    const box = element("section", "", "chart");
    const made = { title, box, lines: [], rank: 1e9 };
    box.append(element("h3", title.replace(/^[a-z]/, (letter) => letter.toUpperCase())));
    made.now = box.appendChild(element("p", "", "now"));
    made.plot = box.appendChild(element("div", "", "plot"));
    made.words = box.appendChild(element("div", "", "words"));
    this.cards.set(title, made);
    this.place.append(box);
    return made;
  }

  explain(card, meaning) {
    const text = element("p", "", "note");
    text.append(element("strong", meaning.title), `: ${meaning.meaning} `, element("em", "Healthy:"), ` ${meaning.healthy}`);
    card.words.append(text);
  }

  // Cards stand in the order of the glossary, which the server keeps; what it does not know is last.
  order(meanings) {
    const keys = Object.keys(meanings);
    for (const card of this.cards.values()) {
      const places = card.lines.map((line) => keys.indexOf(line.key)).filter((place) => place >= 0);
      card.rank = places.length ? Math.min(...places) : 1e9;
    }
    const sorted = [...this.cards.values()].sort((a, b) => a.rank - b.rank).map((card) => card.box);
    if (sorted.some((box, number) => box !== this.place.children[number])) this.place.append(...sorted);
  }

  // Rows that came in; false where a key is new or a line has grown long, so that all is fetched anew.
  append(rows) {
    for (const row of rows) {
      for (const [key, value] of Object.entries(row)) {
        if (key === "step" || typeof value !== "number") continue;
        if (this.single.has(`0:metrics/${key}`)) return false;
        const found = this.lines.get(`0:metrics/${key}`);
        if (!found || found.line.x.length > MOST_POINTS) return false;
        found.line.x.push(row.step ?? found.line.x.length + 1);
        found.line.y.push(value);
        this.due.add(found.card);
      }
    }
    this.draw();
    return true;
  }

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      const next = this.due.values().next();
      if (next.done) return;
      this.due.delete(next.value);
      this.plot(next.value);
      if (this.due.size) this.draw();
    });
  }

  plot(card) {
    const last = card.lines.filter((line) => line.number === 0 && line.y.length);
    const unit = card.lines.find((line) => line.meaning)?.meaning.unit ?? "";
    const values = last.map((line) => (last.length > 1 ? `${line.told} ` : "") + format(line.y.at(-1)));
    card.now.textContent = values.join(" · ") + (values.length && unit ? ` ${unit}` : "");
    const keys = [...new Set(card.lines.map((line) => line.key))];
    const stacked = card.title === STACKED && card.lines.every((line) => line.number === 0);
    const data = card.lines.map((line) => {
      const colour = COLOURS[keys.indexOf(line.key) % COLOURS.length];
      const name = plain(line.several ? `${line.run} ${keys.length > 1 ? line.told : ""}` : line.told);
      const kept = { type: "scatter", mode: line.x.length > 1 ? "lines" : "markers", name, x: line.x, y: line.y };
      const drawn = { color: keys.length > 1 ? colour : COLOURS[line.number % COLOURS.length], width: 2 };
      drawn.dash = keys.length > 1 ? DASHES[line.number % DASHES.length] : "solid";
      return stacked ? { ...kept, line: { ...drawn, width: 0.5 }, stackgroup: "one" } : { ...kept, line: drawn };
    });
    const options = { displayModeBar: false, responsive: true, showTips: false };
    Plotly.react(card.plot, data, layout(data.length > 1), options);
  }
}

function layout(legend) {
  const axis = { gridcolor: own("--line"), zeroline: false, automargin: true, linecolor: own("--line") };
  return {
    height: legend ? 250 : 220,
    margin: { l: 44, r: 10, t: 6, b: 26 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: own("--muted") },
    hovermode: "x unified",
    hoverlabel: { bgcolor: own("--surface"), font: { color: own("--text") } },
    dragmode: "zoom",
    showlegend: legend,
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    xaxis: { ...axis, hoverformat: ",d" },
    yaxis: { ...axis, fixedrange: true },
  };
}

function format(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  return size >= 1e5 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  document.dispatchEvent(new Event("colours"));
});

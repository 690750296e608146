// Blind comparison: both answers stream in; names come after the choice.
"use strict";

const part = (id) => document.getElementById(id);
const form = part("ask");
const round = part("round");
const csrf = form?.dataset.csrf;
let state = "idle"; // asking, judging, chosen
let job = "";

function show(message) {
  part("error").textContent = message;
  part("error").hidden = !message;
}

const side = (name) => part(`card-${name}`);

function enter(next) {
  state = next;
  part("start").disabled = state === "asking";
  part("stop").hidden = state !== "asking";
  part("choices").hidden = state === "chosen";
  part("choices").disabled = state !== "judging";
  part("choose").hidden = state === "chosen";
  part("choose").disabled = state !== "judging";
  round.hidden = state === "idle";
  for (const card of document.querySelectorAll("#round .card")) {
    card.classList.toggle("running", state === "asking");
  }
}

function fields() {
  const data = new FormData(form);
  const models = [...data.keys()].filter((name) => name.startsWith("model:"));
  return {
    prompt: data.get("prompt"),
    temperature: data.get("temperature"),
    max_new_tokens: data.get("max_new_tokens"),
    models: models.map((name) => name.slice("model:".length)),
  };
}

function clear() {
  part("asked").textContent = part("prompt").value;
  part("verdict").textContent = "";
  part("same").hidden = true;
  for (const name of ["a", "b"]) {
    side(name).querySelector(".text").replaceChildren();
    side(name).querySelector(".name").textContent = "";
    side(name).classList.remove("better");
  }
  for (const one of round.elements.choice) {
    one.checked = one.disabled = false;
  }
}

async function begin() {
  show("");
  clear();
  job = "";
  enter("asking");
  let done = false;
  try {
    await stream("/api/compare", csrf, fields(), (event) => {
      if (event.start) {
        job = event.start;
        part("asked").textContent = event.prompt;
      } else if (event.side) {
        side(event.side).querySelector(".text").append(event.text);
      } else if (event.end) {
        done = true;
        judge(event.same);
      }
    });
    if (!done) enter("idle"); // stopped
  } catch (error) {
    show(error.message);
    enter("idle");
  }
}

function judge(same) {
  enter("judging");
  part("same").hidden = !same;
  for (const one of round.elements.choice) {
    one.disabled = same && ["a", "b"].includes(one.value);
  }
  part("start").firstChild.textContent = "Next round ";
  document.activeElement?.blur(); // so that keys choose
}

async function choose() {
  const choice = round.elements.choice.value;
  if (!choice) {
    part("verdict").textContent = "Choose first: 1, 2, T or F.";
    return;
  }
  part("choose").disabled = true;
  try {
    const told = await ask("/api/compare/choose", csrf, { round: job, choice });
    enter("chosen");
    for (const name of ["a", "b"]) {
      side(name).querySelector(".name").textContent = told.names[name];
      side(name).classList.toggle("better", choice === name);
    }
    const words = { a: "A is better", b: "B is better", tie: "A tie", fail: "Both are bad" };
    part("verdict").textContent =
      `${words[choice]}. A was ${told.names.a}, B was ${told.names.b}.`;
    rate(told.ratings);
  } catch (error) {
    show(error.message);
    part("choose").disabled = false;
  }
}

function rate(ratings) {
  const rows = part("ratings").querySelector("tbody");
  rows.replaceChildren();
  for (const one of ratings) {
    const row = rows.insertRow();
    const name = document.createElement("th");
    name.scope = "row";
    name.textContent = one.model;
    row.append(name);
    for (const text of [one.strength, one.interval, ...one.record]) {
      const cell = row.insertCell();
      cell.className = "number";
      cell.textContent = text;
    }
  }
  part("ratings").hidden = ratings.length === 0;
}

function stop() {
  if (state === "asking" && job) ask("/api/stop", csrf, { job }).catch(() => {});
}

const KEYS = { 1: "a", 2: "b", t: "tie", f: "fail" };

function press(event) {
  if (event.ctrlKey && event.key === "Enter" && state !== "asking") {
    event.preventDefault();
    begin();
    return;
  }
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Escape") stop();
  const writing = event.target.matches("textarea, input:not([type=radio]), select");
  if (writing || event.target.matches("button, a, summary")) return;
  if (event.key === "Enter") {
    event.preventDefault();
    if (state === "judging") choose();
    else if (state !== "asking") begin();
  } else if (state === "judging" && KEYS[event.key.toLowerCase()]) {
    const wanted = KEYS[event.key.toLowerCase()];
    for (const one of round.elements.choice) {
      if (one.value === wanted && !one.disabled) one.checked = true;
    }
  }
}

function start() {
  job = round.elements.round.value;
  if (job) {
    enter(part("verdict").textContent ? "chosen" : "judging");
  } else {
    enter("idle");
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (state !== "asking") begin();
  });
  round.addEventListener("submit", (event) => {
    event.preventDefault();
    choose();
  });
  part("stop").addEventListener("click", stop);
  document.addEventListener("keydown", press);
}

if (csrf) start();

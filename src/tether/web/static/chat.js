// The chat. What models and people wrote becomes text nodes, never markup.
"use strict";

const part = (id) => document.getElementById(id);
const csrf = part("settings")?.dataset.csrf;
const turns = []; // {asked, answer, pieces, job, element}
let running = null; // the turn that is being answered

function settings() {
  return {
    model: part("model").value,
    reference: part("reference").value,
    temperature: part("temperature").value,
    max_new_tokens: part("length").value,
    system: part("system").value,
  };
}

function newTurn(asked) {
  const element = part("turn").content.firstElementChild.cloneNode(true);
  const turn = { asked, answer: "", pieces: [], job: "", element };
  element.querySelector(".said-by-you .text").textContent = asked;
  element.querySelector(".up").addEventListener("click", () => thumb(turn, true));
  element.querySelector(".down").addEventListener("click", () => thumb(turn, false));
  element.querySelector(".again").addEventListener("click", () => regenerate(turn));
  part("log").append(element);
  turns.push(turn);
  return turn;
}

const within = (turn, name) => turn.element.querySelector(name);

function clear(turn) {
  Object.assign(turn, { answer: "", pieces: [], job: "" });
  within(turn, ".answer .text").replaceChildren();
  within(turn, ".numbers").hidden = true;
  within(turn, ".state").textContent = "";
  for (const name of [".up", ".down"]) within(turn, name).setAttribute("aria-pressed", "false");
}

async function answer(turn) {
  clear(turn);
  const chosen = settings();
  const messages = turns.slice(0, turns.indexOf(turn)).flatMap((one) => [
    { role: "user", content: one.asked },
    { role: "assistant", content: one.answer },
  ]);
  within(turn, ".answer .role").textContent = chosen.model;
  within(turn, ".tools").hidden = true;
  begin(turn);
  try {
    const fields = { ...chosen, messages: [...messages, { role: "user", content: turn.asked }] };
    await stream("/api/chat", csrf, fields, (event) => take(turn, event));
    part("status").textContent = `Answer: ${turn.answer}`;
  } catch (error) {
    within(turn, ".state").textContent = error.message;
    part("status").textContent = error.message;
  }
  end(turn);
}

function take(turn, event) {
  if (event.start) {
    turn.job = event.start;
    part("plain").hidden = event.chats;
    part("no-system").hidden = event.takes_system;
    part("system").disabled = !event.takes_system;
    if (turn.stopped) stop();
  } else if (event.text !== undefined) {
    const piece = document.createElement("span");
    piece.textContent = event.text;
    turn.pieces.push(piece);
    turn.answer += event.text;
    within(turn, ".answer .text").append(piece);
    follow();
  } else if (event.differences) {
    colour(turn, event.differences);
  }
}

function colour(turn, differences) {
  const rows = within(turn, ".numbers tbody");
  rows.replaceChildren();
  differences.forEach(([difference, shade], place) => {
    const piece = turn.pieces[place];
    const nats = `${difference < 0 ? "−" : "+"}${Math.abs(difference).toFixed(2)}`;
    const ends = piece.textContent === "";
    if (ends) piece.textContent = "⏹";
    piece.title = `${ends ? "end of the answer: " : ""}${nats} nats`;
    piece.className = "token";
    if (shade) piece.classList.add(`${shade > 0 ? "more" : "less"}-${Math.abs(shade)}`);
    const row = rows.insertRow();
    row.insertCell().textContent = ends ? "end" : JSON.stringify(piece.textContent).slice(1, -1);
    row.insertCell().textContent = nats;
    row.cells[0].className = "text mono";
    row.cells[1].className = "number";
  });
  within(turn, ".numbers").hidden = false;
}

function begin(turn) {
  running = turn;
  turn.stopped = false;
  turn.element.classList.add("running");
  for (const id of ["send", "new"]) part(id).disabled = true;
  for (const one of document.querySelectorAll(".again")) one.disabled = true;
  part("stop").hidden = false;
  follow();
}

function end(turn) {
  running = null;
  turn.element.classList.remove("running");
  for (const id of ["send", "new"]) part(id).disabled = false;
  turns.forEach((one) => {
    within(one, ".again").hidden = one !== turns[turns.length - 1];
    within(one, ".again").disabled = false;
  });
  within(turn, ".tools").hidden = false;
  const empty = turn.answer.trim() === "";
  for (const name of [".up", ".down"]) within(turn, name).disabled = empty || !turn.job;
  if (turn.stopped) within(turn, ".state").textContent = "stopped";
  part("stop").hidden = true;
  follow();
}

function stop() {
  if (!running) return;
  running.stopped = true;
  if (running.job) ask("/api/stop", csrf, { job: running.job }).catch(() => {});
}

function regenerate(turn) {
  if (!running && turn === turns[turns.length - 1]) answer(turn);
}

async function thumb(turn, up) {
  const state = within(turn, ".state");
  try {
    const submission = crypto.getRandomValues(new Uint32Array(4)).join("-");
    await ask("/api/chat/thumb", csrf, { job: turn.job, up, submission });
    within(turn, ".up").setAttribute("aria-pressed", String(up));
    within(turn, ".down").setAttribute("aria-pressed", String(!up));
    state.textContent = "saved";
  } catch (error) {
    state.textContent = error.message;
  }
}

// Keep the end in sight, unless somebody has scrolled up to read.
function follow() {
  const page = document.scrollingElement;
  if (page.scrollHeight - page.scrollTop - page.clientHeight < 160) {
    page.scrollTop = page.scrollHeight;
  }
}

function send() {
  const text = part("message").value;
  if (running || text.trim() === "") return;
  part("message").value = "";
  answer(newTurn(text));
}

function start() {
  part("no-script").hidden = true;
  part("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  part("settings").addEventListener("submit", (event) => event.preventDefault());
  part("message").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
  part("stop").addEventListener("click", stop);
  part("new").addEventListener("click", () => {
    turns.length = 0;
    part("log").replaceChildren();
    part("message").focus();
  });
  part("model").addEventListener("change", () => {
    part("plain").hidden = part("no-system").hidden = true;
    part("system").disabled = false;
  });
  const legend = () => (part("legend").hidden = part("reference").value === "");
  part("reference").addEventListener("change", legend);
  legend();
  part("message").focus();
}

if (csrf) start();

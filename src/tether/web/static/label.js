// The labeling page by keyboard and mouse, with the next item there at once (outbox.js sends).
//
// Without scripts the page is a plain form, and with them the form still holds what is chosen: its
// radio buttons are the only state of an item. Texts of models go in by textContent alone.

"use strict";

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const form = $("item");
const PAIR = ["a3", "a2", "a1", "tie", "b1", "b2", "b3"];
const LOOK_AGAIN = 30000; // milliseconds

let now = data.item; // the item on the page; null when there is none
const ahead = []; // items that wait to be shown, so that none is waited for
const past = []; // items judged on this page, with their marks, newest last
let progress = data.progress;
let undone = []; // earlier states of this item's choices
let before = null; // its present state
let card = null; // the completion that keys speak of
let shownAt = 0;

// --- an item on the page -------------------------------------------------------------------------

function show(item, isNew = true) {
  now = item;
  form.hidden = !item;
  $("keys").hidden = !item;
  $("nothing").hidden = Boolean(item);
  if (!item) {
    showNothing();
    return $("nothing-title").focus();
  }
  if (isNew) fill(item);
  $("again").hidden = !item.verdict;
  cards().forEach((one) => (one.tabIndex = -1));
  form.querySelectorAll(".grip").forEach((one) => (one.hidden = false));
  collapse();
  undone = [];
  card = cards()[0];
  before = choices();
  shownAt = performance.now();
  describe();
  if (isNew) window.scrollTo(0, 0);
  focusItem();
}

function fill(item) {
  $("prompt").querySelector(".texts").replaceChildren(...item.prompt.map(makeTurn));
  const size = item.completions.length;
  $("cards").replaceChildren(...item.completions.map((turns, place) => makeCard(turns, place, size)));
  setMarks(item.marks);
}

function makeTurn({ role, content }) {
  const turn = $("turn").content.firstElementChild.cloneNode(true);
  turn.querySelector(".role").textContent = role;
  turn.querySelector(".role").hidden = !role;
  turn.querySelector(".text").textContent = content;
  return turn;
}

function makeCard(turns, place, size) {
  const made = $("card").content.firstElementChild.cloneNode(true);
  const letter = letterOf(place);
  made.dataset.place = place;
  made.querySelector(".letter").textContent = letter;
  made.querySelector(".unseen").textContent = `Completion ${letter}`;
  made.querySelector(".texts").replaceChildren(...turns.map(makeTurn));
  const ranks = made.querySelector(".ranks");
  if (!ranks) return made;
  ranks.setAttribute("aria-label", `Rank of completion ${letter}, 1 is best`);
  const [first, fail] = ranks.children;
  for (let rank = size; rank > 1; rank--) {
    const choice = first.cloneNode(true);
    choice.querySelector("input").value = rank;
    choice.querySelector("span").textContent = rank;
    first.after(choice);
  }
  ranks.append(fail);
  ranks.querySelectorAll("input").forEach((one) => (one.name = `rank-${place}`));
  return made;
}

function showNothing() {
  const busy = outbox.entries.length > 0 || fetching;
  $("nothing-title").textContent = busy ? "Waiting for the next item …" : "Nothing left for you now";
}

function focusItem() {
  const target = data.mode === "rank" ? card : form.querySelector("[data-stop]");
  if (!target) return;
  target.tabIndex = -1;
  target.focus({ preventScroll: target === cards()[0] });
}

const cards = () => [...$("cards").children];
const letterOf = (place) => data.letters[place] ?? String(place + 1);
const placeOf = (one) => Number(one.dataset.place);

// --- long texts ----------------------------------------------------------------------------------

function collapse() {
  for (const texts of form.querySelectorAll(".texts")) {
    expand([texts], false);
    const isLong = texts.scrollHeight > texts.clientHeight + 8;
    texts.classList.toggle("short", isLong);
    texts.nextElementSibling.hidden = !isLong;
    texts.nextElementSibling.onclick = () => expand([texts], texts.classList.contains("short"));
  }
}

function expand(all, open) {
  for (const texts of all) {
    texts.classList.toggle("short", !open);
    texts.nextElementSibling.firstChild.textContent = open ? "Show less " : "Show all ";
    texts.nextElementSibling.setAttribute("aria-expanded", open);
  }
}

function toggleLong() {
  const long = [...form.querySelectorAll(".texts")].filter((one) => !one.nextElementSibling.hidden);
  expand(long, long.some((one) => one.classList.contains("short")));
}

// --- choices -------------------------------------------------------------------------------------

function marks() {
  const checked = form.querySelectorAll("input[type=radio]:checked");
  return Object.fromEntries([...checked].map((one) => [one.name, one.value]));
}

function setMarks(chosen) {
  for (const one of form.querySelectorAll("input[type=radio]")) {
    one.checked = chosen[one.name] === one.value;
  }
}

const choices = () => ({ marks: marks(), order: cards(), card });

function choose(name, value) {
  setMarks({ ...marks(), [name]: value });
  changed();
}

function changed() {
  undone.push(before);
  before = choices();
  describe();
}

function undo() {
  if (!undone.length) return goBack();
  before = undone.pop();
  $("cards").append(...before.order);
  setMarks(before.marks);
  card = before.card;
  describe();
  focusItem();
}

function rank(value) {
  choose(`rank-${placeOf(card)}`, value);
  const all = cards(), chosen = marks(), from = all.indexOf(card);
  const next = [...all.slice(from), ...all.slice(0, from)];
  card = next.find((one) => !(`rank-${placeOf(one)}` in chosen)) ?? card;
  before.card = card;
  focusItem();
}

function move(step) {
  const all = cards();
  card = all[Math.min(Math.max(all.indexOf(card) + step, 0), all.length - 1)];
  focusItem();
}

function lean(step) {
  const at = PAIR.indexOf(marks().choice);
  const to = at < 0 ? 3 + step : Math.min(Math.max(at + step, 0), 6);
  choose("choice", PAIR[to]);
}

// The answer as the server takes it, or what is still missing.
function answer() {
  const chosen = marks();
  if (data.mode === "thumbs") {
    return chosen.thumb ? { ranks: [chosen.thumb === "up" ? 1 : null] } : { missing: "Choose up or down" };
  }
  if (data.mode === "pair") {
    const { choice } = chosen;
    if (!choice) return { missing: "Choose how the two compare" };
    if (choice === "fail") return { ranks: [null, null], strength: 0 };
    if (choice === "tie") return { ranks: [1, 1], strength: 0 };
    return { ranks: choice[0] === "a" ? [1, 2] : [2, 1], strength: Number(choice[1]) };
  }
  const said = cards().map((_, place) => chosen[`rank-${place}`]);
  const open = said.flatMap((one, place) => (one ? [] : [letterOf(place)]));
  if (open.length) return { missing: `Not ranked yet: ${open.join(", ")}` };
  return { ranks: said.map((one) => (one === "fail" ? null : Number(one))) };
}

// Say what is chosen: as a line on the page, and in words to screen readers.
function describe() {
  const { visible, spoken } = data.mode === "rank" ? describeOrder() : describeChoice();
  $("order").textContent = visible;
  $("order").classList.remove("warned");
  $("undo").firstChild.textContent = undone.length ? "Undo " : "Previous ";
  if (undone.length) announce(spoken);
}

function describeChoice() {
  const chosen = form.querySelector("input[type=radio]:checked");
  const text = chosen ? chosen.nextElementSibling.textContent : "Nothing chosen yet";
  return { visible: text, spoken: text };
}

function describeOrder() {
  const chosen = marks(), groups = new Map(), open = [];
  for (let place = 0; place < cards().length; place++) {
    const said = chosen[`rank-${place}`];
    if (said) groups.set(said, [...(groups.get(said) ?? []), letterOf(place)]);
    else open.push(letterOf(place));
  }
  const failed = groups.get("fail") ?? [];
  groups.delete("fail");
  const order = [...groups.keys()].sort((a, b) => a - b).map((one) => groups.get(one));
  const parts = [
    order.map((one) => one.join(" = ")).join(" > "),
    failed.length && `fail: ${failed.join(", ")}`,
    open.length && `${open.length < cards().length ? "open" : "Not ranked yet"}: ${open.join(", ")}`,
  ];
  const spoken = [
    order.map((one) => one.join(" and ")).join(", then "),
    failed.length && `${failed.join(" and ")} fail`,
  ];
  return { visible: parts.filter(Boolean).join("  ·  "), spoken: spoken.filter(Boolean).join("; ") };
}

function announce(text) {
  $("status").textContent = text;
}

// --- judging -------------------------------------------------------------------------------------

function judge(verdict, reason = "") {
  const said = verdict === "ranked" ? answer() : {};
  if (said.missing) {
    $("order").textContent = said.missing;
    $("order").classList.add("warned");
    return announce(said.missing);
  }
  const seconds = Math.round(performance.now() - shownAt) / 1000;
  const sent = { assignment: now.id, submission: randomName(), verdict, reason, seconds, ...said };
  if (!past.length && $("instructions")) $("instructions").open = false; // they have been read
  past.push({ ...now, marks: verdict === "ranked" ? marks() : {}, verdict, reason });
  outbox.add({ at: Date.now(), isNew: !now.verdict, answer: sent });
  show(ahead.shift() ?? null);
  announce(now ? "Submitted. Next item." : "Submitted.");
  outbox.flush();
  refill();
  showState();
}

function randomName() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((one) => one.toString(16).padStart(2, "0")).join("");
}

// Back to the previous judgment: of this page, or else the last that the server has.
async function goBack() {
  const known = past.pop();
  if (known) return reopen(known);
  const reply = await request("/api/recent");
  if (reply.status !== 200) return announce("The previous judgment cannot be fetched now.");
  const ids = reply.body.recent.map((one) => one.id);
  const id = ids[ids.indexOf(now?.id) + 1];
  if (id) await reopenById(id);
  else announce("There is no earlier judgment.");
}

async function reopenById(id) {
  const reply = await request(`/api/item/${id}`);
  if (reply.status === 200) reopen(reply.body.item);
  else announce("That judgment cannot be fetched now.");
}

function reopen(item) {
  if (now && !now.verdict) ahead.unshift(now);
  show(item);
  announce("Your earlier judgment.");
}

// --- the next items, and what is on its way ------------------------------------------------------

const request = (url, body) => ask(url, data.csrf, body);
const outbox = new Outbox(`tether/${data.key}/`, { send, taken, retry: tryAgain, changed: showState });
let fetching = false;

function send(entry) {
  const more = ahead.length === 0;
  return request("/api/judgments", { ...entry.answer, held: held(entry), more });
}

function taken({ next, progress: latest }) {
  progress = latest;
  if (next) admit(next);
  if ($("recent").open) showRecent();
}

function tryAgain() {
  outbox.flush();
  refill();
}

// Items that this page has, judged or not: the server is to send others.
function held(sent) {
  const waiting = outbox.entries.filter((one) => one !== sent).map((one) => one.answer.assignment);
  return [...new Set([now, ...ahead].filter(Boolean).map((one) => one.id)), ...waiting];
}

async function refill() {
  if (ahead.length || fetching || (outbox.sending && now)) return;
  fetching = true;
  const reply = await request(`/api/next?held=${held().join(",")}`);
  fetching = false;
  if (reply.status !== 200) return outbox.later(reply);
  if (!outbox.entries.length) outbox.reached();
  progress = reply.body.progress;
  if (reply.body.next) admit(reply.body.next);
  showState();
}

function admit(item) {
  if (held().includes(item.id)) return;
  if (now) return ahead.push(item);
  show(item);
  announce("A new item.");
  return refill();
}

// --- around the item -----------------------------------------------------------------------------

function showState() {
  const { entries, trouble } = outbox, message = outbox.message();
  if ($("banner-text").textContent !== message) $("banner-text").textContent = message;
  $("banner").hidden = !message;
  $("retry").hidden = !trouble;
  $("saving").hidden = !entries.length || Boolean(trouble);
  $("own").textContent = progress.own + entries.filter((one) => one.isNew).length;
  $("progress").value = progress.percent;
  $("percent").textContent = `${progress.percent} %`;
  $("changed").hidden = progress.instructions === data.version;
  if (!now) showNothing();
}

async function showRecent() {
  const reply = await request("/api/recent");
  if (reply.status !== 200) return;
  $("no-recent").hidden = reply.body.recent.length > 0;
  $("recent-list").replaceChildren(
    ...reply.body.recent.map(({ id, said, prompt }) => {
      const link = Object.assign(document.createElement("a"), { href: `/item/${id}` });
      link.dataset.id = id;
      const parts = [["said", said], ["start", prompt]].map(([kind, text]) =>
        Object.assign(document.createElement("span"), { className: kind, textContent: text }));
      link.append(parts[0], " ", parts[1]);
      const line = document.createElement("li");
      line.append(link);
      return line;
    }),
  );
}

let asked = "skipped";

function askReason(verdict) {
  asked = verdict;
  const flag = verdict === "flagged";
  $("reason-title").textContent = flag ? "Flag this item" : "Skip this item";
  $("reason-ask").textContent = flag ? "What is wrong with it?" : "Why? You may leave this empty.";
  $("reason-send").firstChild.textContent = flag ? "Flag " : "Skip ";
  $("reason").required = flag;
  $("reason").value = now.reason;
  $("reason-dialog").returnValue = "";
  $("reason-dialog").showModal();
  $("reason").focus();
}

// --- keys ----------------------------------------------------------------------------------------

function act(event) {
  const { key } = event;
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code)?.[1]; // also where digits need Shift
  if (key === "?") return () => $("help").showModal();
  if (key.toLowerCase() === "u") return undo;
  if (!now) return null;
  if (key === "Enter") return event.target.closest("button, a, summary") ? null : () => judge("ranked");
  const common = { s: () => askReason("skipped"), x: () => askReason("flagged"), e: toggleLong };
  return common[key.toLowerCase()] ?? keysOf[data.mode](key, digit);
}

const keysOf = {
  rank(key, digit) {
    const value = digit === "0" ? 10 : Number(digit);
    if (value <= cards().length) return () => rank(String(value));
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[key];
    if (step) return () => move(step);
    return key.toLowerCase() === "f" ? () => rank("fail") : null;
  },
  pair(key, digit) {
    if (PAIR[digit - 1]) return () => choose("choice", PAIR[digit - 1]);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
    if (step) return () => lean(step);
    return key.toLowerCase() === "f" ? () => choose("choice", "fail") : null;
  },
  thumbs(key) {
    const value = { y: "up", n: "down", arrowup: "up", arrowdown: "down" }[key.toLowerCase()];
    return value ? () => choose("thumb", value) : null;
  },
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.matches("textarea, input:not([type=radio])")) return;
  const action = act(event);
  if (!action) return;
  event.preventDefault();
  if (!event.repeat || event.key.startsWith("Arrow")) action(); // a key held down says it once
}

// --- dragging: the order of the cards gives the ranks --------------------------------------------

// Put a card in the place of another; cards that failed keep their fail.
function drop(dragged, goal) {
  const all = cards();
  if (all.indexOf(dragged) < all.indexOf(goal)) goal.after(dragged);
  else goal.before(dragged);
  const chosen = marks();
  let next = 1;
  for (const one of cards()) {
    const name = `rank-${placeOf(one)}`;
    if (chosen[name] !== "fail" || one === dragged) chosen[name] = String(next++);
  }
  setMarks(chosen);
  card = dragged;
  changed();
  focusItem();
}

// --- start ---------------------------------------------------------------------------------------

function listen() {
  document.addEventListener("keydown", onKey);
  form.addEventListener("change", changed);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    judge("ranked");
  });
  form.addEventListener("focusin", (event) => (card = event.target.closest(".card") ?? card));
  dragCards($("cards"), drop);
  $("undo").onclick = undo;
  $("skip").onclick = () => askReason("skipped");
  $("flag").onclick = () => askReason("flagged");
  $("retry").onclick = tryAgain;
  $("help-button").onclick = () => $("help").showModal();
  $("reason-cancel").onclick = () => $("reason-dialog").close();
  $("reason").onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    $("reason").form.requestSubmit($("reason-send"));
  };
  $("reason-dialog").onclose = () => {
    if ($("reason-dialog").returnValue === "send") judge(asked, $("reason").value.trim());
    else focusItem();
  };
  $("recent").ontoggle = () => $("recent").open && showRecent();
  $("recent-list").onclick = (event) => {
    const link = event.target.closest("a");
    if (!link) return;
    event.preventDefault();
    reopenById(Number(link.dataset.id));
  };
  addEventListener("online", tryAgain);
  addEventListener("beforeunload", warnOfLoss);
  setInterval(() => now || refill(), LOOK_AGAIN);
}

// Only where the browser keeps nothing for us can leaving the page lose anything.
function warnOfLoss(event) {
  if (outbox.entries.length && !outbox.stored().length) event.preventDefault();
}

for (const id of ["help-button", "undo", "skip", "flag"]) $(id).hidden = false;
$("aside").hidden = true;
listen();
const unsent = outbox.entries.some((one) => one.answer.assignment === now?.id);
show(unsent ? null : now, unsent);
tryAgain();

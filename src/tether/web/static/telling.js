// What the simulator's page shows of a view: numbers, a verdict, answers, tables, pinned settings,
// the tour. Text is only ever set as text.

"use strict";

const HEAVIEST = 12;
const at = (id) => document.getElementById(id);

// --- numbers as text -----------------------------------------------------------------------------

const digits = (value, places = 2) => value.toFixed(places).replace(/^-(?=0\.?0*$)/, "").replace("-", "−");
const signed = (value, places = 2) => (value >= 0 ? "+" : "") + digits(value, places);
const short = (value) => String(Number(value.toPrecision(3)));

function element(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

// Texts of elements that are written in every frame: only what has changed is touched.
const written = new Map();
function write(id, text) {
  if (written.get(id) === text) return;
  written.set(id, text);
  at(id).textContent = text;
}

// --- numbers and verdict -------------------------------------------------------------------------

function show(id, value, text, note) {
  write(id, text);
  at(id).dataset.value = value;
  write(`${id}-note`, note);
}

function showNumbers() {
  const count = view.weights.length, cap = Math.log(count);
  show("proxy", view.proxy, digits(view.proxy), `${signed(view.proxyGain)}; reference ${digits(view.start.proxy)}`);
  show("gold", view.gold, digits(view.gold), `${signed(view.goldGain)}; reference ${digits(view.start.gold)}`);
  show("kl", view.kl, digits(view.kl), `nats, seen up to ${digits(cap)}`);
  show("entropy", view.entropy, digits(view.entropy), `nats; reference ${digits(cap)}`);
  show("ess", view.ess, view.ess < 9.95 ? digits(view.ess, 1) : digits(view.ess, 0), `of ${count} answers`);
  at("numbers").classList.toggle("faded", view.unsure);
  const [kind, text] = verdict(view, count);
  write("verdict", text);
  at("verdict").className = `verdict ${kind}`;
  for (const [name, value] of Object.entries(state.setting)) write(`${name}-now`, short(value));
}

// In a sentence: what kind of policy this is.
function verdict(found, count) {
  if (found.unsure) {
    return ["unsure", `The pool cannot know: ${digits(found.ess, 1)} of ${count} answers carry this policy, ${digits(found.kl)} nats away ` +
      `of at most ${digits(Math.log(count))}. These numbers are a few lucky samples.`];
  }
  if (found.kl < 0.02) return ["", "This is the reference: every answer weighs about the same."];
  const moved = `The proxy is ${signed(found.proxyGain)}, gold ${signed(found.goldGain)}`;
  if (found.proxyGain > 0 && found.goldGain < -0.02 * found.goldSpread) {
    return ["hacked", `${moved}: reward hacking. The policy does what it is paid for, and gets worse.`];
  }
  const best = curves.tilts.filter((one) => !unsure(one, count)).reduce((a, b) => (b.gold > a.gold ? b : a));
  if (state.scope === "one" && best.kl < found.kl && best.gold > found.goldGain + 0.1 * found.goldSpread) {
    return ["past", `${moved}. Gold was ${signed(best.gold)} at ${digits(best.kl, 1)} nats: past the peak, the proxy is bought with quality.`];
  }
  return ["good", `${moved}: what the proxy likes is what people want.`];
}

// --- answers -------------------------------------------------------------------------------------

function showAnswers() {
  const { completions } = pool.prompts[state.prompt];
  const k = view.shown;
  write("answer-how", state.pick >= 0 ? `answer ${k + 1}, picked` : `draw ${state.draw + 1} from the policy`);
  write("answer", completions[k].trim());
  at("answer").dataset.number = k;
  write("before", completions[view.before].trim());
  figures("answer-figures", k);
  figures("before-figures", view.before);
  const above = view.scores.filter((value) => value > view.scores[k]).length;
  at("loves").hidden = !(above < view.scores.length / 10 && columns(state.prompt).kinds[k] === 0);
}

function figures(id, k) {
  const row = pool.prompts[state.prompt];
  const share = Math.log(view.weights.length * view.weights[k]);
  const found = [
    ["proxy", view.scores[k], digits(view.scores[k])],
    ["gold", row.gold[k], digits(row.gold[k])],
    ["tokens", row.tokens[k], String(row.tokens[k])],
    ["log(N w), its share of the KL", share, Number.isFinite(share) ? signed(share) : "−∞"],
  ];
  const list = at(id);
  if (!list.children.length) {
    for (const [name] of found) {
      const one = element("div");
      one.append(element("dt", name), element("dd"));
      list.append(one);
    }
  }
  found.forEach(([, value, text], number) => {
    const cell = list.children[number].lastChild;
    if (cell.textContent !== text) cell.textContent = text;
    cell.dataset.value = value;
  });
}

function number(value, text, kind = "number") {
  const cell = element("td", text, kind);
  cell.dataset.value = value;
  return cell;
}

// --- tables --------------------------------------------------------------------------------------

function showHeaviest() {
  const { completions, gold, tokens } = pool.prompts[state.prompt];
  const order = [...completions.keys()].sort((a, b) => view.weights[b] - view.weights[a]);
  at("heaviest").tBodies[0].replaceChildren(...order.slice(0, HEAVIEST).map((k) => {
    const row = element("tr"), text = element("td"), button = element("button", completions[k].trim() || "(nothing)", "quiet text");
    button.onclick = () => { state.pick = k; changed(); };
    text.append(button);
    const share = digits(100 * view.weights[k], 1);
    row.append(number(view.weights[k], `${share} %`), number(view.scores[k], digits(view.scores[k])), number(gold[k], digits(gold[k])), number(tokens[k], tokens[k]), text);
    return row;
  }));
}

function showChosen() {
  at("chosen").tBodies[0].replaceChildren(...curves.chosen.map((one) => {
    const row = element("tr");
    row.append(number(one.n, one.n), number(one.kl, digits(one.kl)), number(one.bound, digits(one.bound)), number(one.proxy, signed(one.proxy)), number(one.gold, signed(one.gold)), number(one.ess, digits(one.ess, 0)));
    return row;
  }));
}

function showPoints() {
  at("points-note").hidden = !pool.points.length;
  at("points").tBodies[0].replaceChildren(...pool.points.map((one) => {
    const row = element("tr"), name = element("th", one.policy);
    name.scope = "row";
    row.append(name, number(one.step, one.step ?? "end"), number(one.kl, digits(one.kl)), number(one.proxy, signed(one.proxy)), number(one.gold, signed(one.gold)));
    return row;
  }));
}

// --- pinned settings -----------------------------------------------------------------------------

const SHOWN = [
  ["β", (one) => one.setting.beta, short],
  ["Length bias", (one) => one.setting.length, short],
  ["Sycophancy bias", (one) => one.setting.flattery, short],
  ["Noise", (one) => one.setting.noise, short],
  ["Heavy tail", (one) => one.setting.tail, short],
  ["Proxy gain", (one) => one.proxyGain, signed],
  ["Gold gain", (one) => one.goldGain, signed],
  ["KL, nats", (one) => one.kl, digits],
  ["Effective samples", (one) => one.ess, (value) => digits(value, 1)],
];

function showPins() {
  const section = at("pins");
  section.hidden = !state.pins.length;
  at("pin").disabled = state.pins.length === 2;
  if (section.hidden) return;
  const found = [...state.pins.map((pin) => look(state.prompt, pin)), view];
  const head = element("tr");
  head.append(element("th", ""), ...found.map((_, k) => {
    const cell = element("th", k < state.pins.length ? `${"AB"[k]} ` : "Now");
    if (k < state.pins.length) {
      cell.append(action("Use", `Use ${"AB"[k]}`, () => { state.setting = { ...state.pins[k] }; showControls(); }));
      cell.append(action("Unpin", `Unpin ${"AB"[k]}`, () => { state.pins.splice(k, 1); }));
    }
    return cell;
  }));
  const [table] = section.getElementsByTagName("table");
  table.tHead.replaceChildren(head);
  const rows = SHOWN.map(([name, value, text]) => {
    const row = element("tr");
    row.append(heading(name), ...found.map((one) => number(value(one), text(value(one)), "")));
    return row;
  });
  const last = element("tr");
  last.append(heading(`Draw ${state.draw + 1}`), ...found.map((one) => {
    const k = drawn(one.scores, one.setting.beta, draws());
    return element("td", pool.prompts[state.prompt].completions[k].trim(), "text drawn");
  }));
  table.tBodies[0].replaceChildren(...rows, last);
}

function heading(name) {
  const cell = element("th", name);
  cell.scope = "row";
  return cell;
}

function action(text, title, act) {
  const button = element("button", text, "quiet small");
  button.setAttribute("aria-label", title);
  button.onclick = () => { act(); changed(); };
  return button;
}

// --- the tour ------------------------------------------------------------------------------------

function showTour() {
  at("tour").hidden = !state.tour;
  at("tour-begin").hidden = Boolean(state.tour);
  if (!state.tour) return;
  const step = TOUR[state.tour - 1], met = step.met(view);
  write("tour-step", `Step ${state.tour} of ${TOUR.length}`);
  write("tour-title", step.title);
  write("tour-text", step.text);
  write("tour-met", met ? (state.tour === TOUR.length ? "Done: you broke a reward and mended it." : "Reached.") : "");
  write("tour-next", state.tour === TOUR.length ? "Finish" : "Next");
  at("tour-next").disabled = !met;
  place.dataset.tour = `${state.tour} ${met ? "met" : "open"}`;
}

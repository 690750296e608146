// The simulator's page: what the visitor has set, what follows from it, and where it is shown.
// The numbers come from tilt.js, the pictures from picture.js, the tour's steps from tour.js.

"use strict";

const FAULTS = { length: [0.3, 0.005], flattery: [3, 0.05], noise: [3, 0.05], tail: [2, 0.05] }; // most, step
const BETA_STEP = 0.005; // of its decimal logarithm
const BUDGET = 6; // milliseconds of a frame for the curves of further prompts
const HEAVIEST = 12;
const NONE = { length: 0, flattery: 0, noise: 0, tail: 0 };

const at = (id) => document.getElementById(id);
const place = at("simulator"), banner = at("banner");
const dots = new Picture(at("dots")), plane = new Picture(at("plane"));

// What the address holds. `draw` numbers the generated answer, `pick` is one that was clicked.
const state = { prompt: 0, setting: { beta: 1, ...NONE }, draw: 0, pick: -1, scope: "one", pins: [], tour: 0 };
let pool = null, size = 0, scale = 1, betas = [], betaRange = [0, 1];
let view = null, curves = null, job = null, due = false, writing = null;
const prepared = []; // columns of each prompt

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

// --- the address ---------------------------------------------------------------------------------

const packed = (setting) => [setting.beta, ...Object.keys(NONE).map((name) => setting[name])].join(",");

function unpacked(text) {
  const [beta, ...faults] = text.split(",").map(Number);
  const values = Object.keys(NONE).map((name, k) => [name, faults[k] || 0]);
  return { beta: beta > 0 ? beta : 1, ...Object.fromEntries(values) };
}

function address() {
  const asked = new URLSearchParams({ prompt: state.prompt, set: packed(state.setting), draw: state.draw });
  if (state.pick >= 0) asked.set("pick", state.pick);
  if (state.scope !== "one") asked.set("scope", state.scope);
  for (const pin of state.pins) asked.append("pin", packed(pin));
  if (state.tour) asked.set("tour", state.tour);
  return `#${asked.toString().replaceAll("%2C", ",")}`;
}

function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const whole = (name, most, least = 0) => {
    const value = Math.floor(Number(asked.get(name) ?? least));
    return value >= least && value <= most ? value : least;
  };
  state.prompt = whole("prompt", pool.prompts.length - 1);
  state.setting = unpacked(asked.get("set") ?? String(scale));
  state.draw = whole("draw", 2 ** 31 - 1);
  state.pick = whole("pick", pool.prompts[state.prompt].completions.length - 1, -1);
  state.scope = asked.get("scope") === "all" ? "all" : "one";
  state.pins = asked.getAll("pin").slice(0, 2).map(unpacked);
  state.tour = whole("tour", TOUR.length);
  showControls();
}

// --- what follows from the state -----------------------------------------------------------------

function columns(number) {
  prepared[number] ??= columnsOf(pool.prompts[number], number);
  return prepared[number];
}

// A prompt under a setting: all that the page says of it.
function look(number, setting) {
  const own = columns(number);
  const proxy = faulty(own, setting);
  const weights = tiltWeights(proxy, setting.beta);
  const found = measures(weights, proxy, own.gold);
  const start = { proxy: mean(proxy), gold: mean(own.gold) };
  return {
    ...found, setting, scores: proxy, weights, start, scale,
    proxyGain: found.proxy - start.proxy,
    goldGain: found.gold - start.gold,
    goldSpread: deviation(own.gold),
    unsure: unsure(found, weights.length),
  };
}

const deviation = (values) => {
  const middle = mean(values);
  return Math.sqrt(mean(values.map((value) => (value - middle) ** 2)));
};

const faultsOf = (setting) => Object.keys(NONE).map((name) => setting[name]).join();

// Curves of this prompt at once; those of all prompts within the budget of each frame.
function renewCurves() {
  const key = `${state.scope} ${state.scope === "one" ? state.prompt : ""} ${faultsOf(state.setting)}`;
  if (job?.key !== key) {
    const numbers = state.scope === "one" ? [state.prompt] : [...pool.prompts.keys()];
    job = { key, numbers, done: [] };
  }
  const begun = performance.now();
  while (job.done.length < job.numbers.length && performance.now() - begun < BUDGET) {
    const own = columns(job.numbers[job.done.length]);
    job.done.push(curvesOf(faulty(own, state.setting), own.gold, betas));
    if (job.done.length === job.numbers.length) curves = meanCurves(job.done);
  }
  return job.done.length === job.numbers.length;
}

// Where a setting stands on the plane, of this prompt or of all.
function standing(setting) {
  const numbers = state.scope === "one" ? [state.prompt] : [...pool.prompts.keys()];
  const found = numbers.map((number) => look(number, setting));
  return { kl: mean(found.map((one) => one.kl)), proxy: mean(found.map((one) => one.proxyGain)), gold: mean(found.map((one) => one.goldGain)) };
}

let pinned = { key: "", standings: [] };
function pinStandings() {
  const key = `${state.scope} ${state.prompt} ${state.pins.map(packed)}`;
  if (pinned.key !== key) {
    pinned = { key, standings: state.pins.map((pin, k) => ({ ...standing(pin), name: "AB"[k] })) };
  }
  return pinned.standings;
}

// --- a frame -------------------------------------------------------------------------------------

function changed() {
  place.dataset.settled = "no";
  if (!due) requestAnimationFrame(frame);
  due = true;
  clearTimeout(writing);
  writing = setTimeout(settle, 200);
}

function frame() {
  due = false;
  const begun = performance.now();
  view = look(state.prompt, state.setting);
  const own = columns(state.prompt);
  own.jitter ??= Float64Array.from(own.gold, (_, k) => 2 * uniform(99, k) - 1);
  own.kinds ??= kindsOf(own.gold);
  const noise = draws();
  view.drawn = drawn(view.scores, state.setting.beta, noise);
  view.before = drawn(view.scores, Infinity, noise);
  view.shown = state.pick >= 0 ? state.pick : view.drawn;
  const whole = renewCurves();
  if (!curves) { changed(); return; }
  drawDots(dots, {
    proxy: view.scores, gold: own.gold, weights: view.weights, start: view.start,
    now: view, shown: view.shown, faded: view.unsure, kinds: own.kinds, jitter: own.jitter,
    proxyName: `${pool.proxy}${faultsOf(state.setting) === faultsOf(NONE) ? "" : ", with its faults"}`, goldName: pool.gold,
  });
  const now = state.scope === "one" ? { kl: view.kl, proxy: view.proxyGain, gold: view.goldGain } : standing(state.setting);
  drawPlane(plane, { curves, points: pool.points, size, now, pins: pinStandings() });
  showNumbers();
  showAnswers();
  showTour();
  place.dataset.milliseconds = performance.now() - begun;
  if (!whole) changed();
}

let dealt = { key: "", noise: null };
function draws() {
  const key = `${state.prompt} ${state.draw}`;
  if (dealt.key !== key) dealt = { key, noise: gumbels(state.prompt, columns(state.prompt).gold.length, state.draw) };
  return dealt.noise;
}

// 0 bad, 1 middling, 2 good: by half a standard deviation from the mean.
function kindsOf(gold) {
  const middle = mean(gold), half = deviation(gold) / 2;
  return Array.from(gold, (value) => (value < middle - half ? 0 : value > middle + half ? 2 : 1));
}

function show(id, value, text, note) {
  write(id, text);
  at(id).dataset.value = value;
  write(`${id}-note`, note);
}

function showNumbers() {
  const count = view.weights.length, cap = Math.log(count);
  show("proxy", view.proxy, digits(view.proxy), `${signed(view.proxyGain)} on the reference's ${digits(view.start.proxy)}`);
  show("gold", view.gold, digits(view.gold), `${signed(view.goldGain)} on the reference's ${digits(view.start.gold)}`);
  show("kl", view.kl, digits(view.kl), `nats an answer; the pool sees at most ${digits(cap)}`);
  show("entropy", view.entropy, digits(view.entropy), `nats; of the reference ${digits(cap)}`);
  show("ess", view.ess, view.ess < 9.95 ? digits(view.ess, 1) : digits(view.ess, 0), `answers of ${count} carry the policy`);
  at("numbers").classList.toggle("faded", view.unsure);
  const [kind, text] = verdict(view, count);
  write("verdict", text);
  at("verdict").className = `verdict ${kind}`;
  for (const name of Object.keys(FAULTS)) write(`${name}-now`, short(state.setting[name]));
  write("beta-now", short(state.setting.beta));
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
  write("answer", completions[k]);
  at("answer").dataset.number = k;
  write("before", completions[view.before]);
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

function number(value, text) {
  const cell = element("td", text, "number");
  cell.dataset.value = value;
  return cell;
}

// What need not follow a drag frame by frame: tables and the address.
function settle() {
  if (!pool || due) return;
  showHeaviest();
  showChosen();
  showPins();
  const wanted = address();
  if (location.hash !== wanted) history.replaceState(null, "", wanted);
  place.dataset.settled = "yes";
}

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
    const cell = element("th", k < state.pins.length ? `${"AB"[k]} ` : "Now", "number");
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
    row.append(heading(name), ...found.map((one) => number(value(one), text(value(one)))));
    return row;
  });
  const last = element("tr");
  last.append(heading(`Draw ${state.draw + 1}`), ...found.map((one) => {
    const k = drawn(one.scores, one.setting.beta, draws());
    return element("td", pool.prompts[state.prompt].completions[k], "text answer");
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

// The first β, from the dearest on, that reaches a step with its faults; null where none does.
function solution(step, number, setting) {
  const faults = Object.fromEntries(Object.entries(step.with).map(([name, value]) => [name, value * scale]));
  for (const beta of betas) {
    const tried = { ...setting, ...faults, beta: Number(beta.toPrecision(4)) };
    if (step.met(look(number, tried))) return tried;
  }
  return null;
}

// A prompt on which every step can be reached without the pool's running out.
function beginTour() {
  const clear = (number) => {
    const before = { beta: scale, ...NONE };
    const [good, hacked] = [TOUR[1], TOUR[3]].map((step) => solution(step, number, before));
    return good && hacked && !look(number, hacked).unsure;
  };
  const found = [...pool.prompts.keys()].find(clear);
  state.prompt = found ?? state.prompt;
  state.setting = { beta: scale, ...NONE };
  state.pick = -1;
  state.tour = 1;
  showControls();
  showPrompt();
  changed();
}

// --- controls ------------------------------------------------------------------------------------

function prepareControls() {
  const beta = at("beta");
  Object.assign(beta, { min: betaRange[0], max: betaRange[1], step: BETA_STEP });
  beta.oninput = () => set({ beta: Number((10 ** Number(beta.value)).toPrecision(4)) });
  for (const [name, [most, step]] of Object.entries(FAULTS)) {
    const slider = at(name);
    Object.assign(slider, { min: 0, max: most * scale, step: step * scale });
    slider.oninput = () => set({ [name]: Number(Number(slider.value).toPrecision(4)) });
  }
  if (!pool.prompts.every((row) => row.flattery)) {
    at("flattery").disabled = true;
    write("flattery-note", "This pool does not count flattering phrases: prepare it with --flattery.");
  }
  at("prompt").replaceChildren(...pool.prompts.map((row, k) => {
    const option = element("option", `${k + 1}. ${title(row)}`);
    option.value = k;
    return option;
  }));
  at("prompt").onchange = () => { state.prompt = Number(at("prompt").value); state.pick = -1; showPrompt(); changed(); };
  if (at("pool")) at("pool").onchange = () => { location.href = `/simulator?${new URLSearchParams({ pool: at("pool").value })}`; };
  at("generate").onclick = () => { if (state.pick < 0) state.draw += 1; state.pick = -1; changed(); };
  at("reset").onclick = () => { set(NONE); showControls(); };
  at("pin").onclick = () => { if (state.pins.length < 2) state.pins.push({ ...state.setting }); changed(); };
  for (const one of document.getElementsByName("scope")) one.onchange = () => { state.scope = one.value; changed(); };
  at("tour-begin").onclick = beginTour;
  at("tour-end").onclick = () => { state.tour = 0; changed(); };
  at("tour-next").onclick = () => { state.tour = state.tour === TOUR.length ? 0 : state.tour + 1; changed(); };
  at("tour-show").onclick = () => {
    state.setting = solution(TOUR[state.tour - 1], state.prompt, state.setting) ?? state.setting;
    showControls();
    changed();
  };
  at("dots").onclick = (event) => {
    const k = dotAt(dots, event.offsetX, event.offsetY);
    if (k >= 0) state.pick = k;
    changed();
  };
  addEventListener("hashchange", () => { readAddress(); showPrompt(); changed(); });
}

function set(values) {
  Object.assign(state.setting, values);
  state.pick = -1;
  changed();
}

function showControls() {
  at("beta").value = Math.log10(state.setting.beta);
  for (const name of Object.keys(FAULTS)) at(name).value = state.setting[name];
  at("prompt").value = state.prompt;
  for (const one of document.getElementsByName("scope")) one.checked = one.value === state.scope;
}

const turnsOf = (row) => (Array.isArray(row.prompt) ? row.prompt : [{ role: "", content: String(row.prompt) }]);

function title(row) {
  const text = String(turnsOf(row).at(-1)?.content ?? "").split("\n")[0];
  return (text.length > 70 ? `${text.slice(0, 69)}…` : text) + (row.category ? ` (${row.category})` : "");
}

function showPrompt() {
  at("prompt").value = state.prompt;
  at("asked").replaceChildren(...turnsOf(pool.prompts[state.prompt]).flatMap((turn) => {
    const text = element("p", String(turn.content), "text");
    text.dir = "auto";
    return turn.role ? [element("p", String(turn.role), "role"), text] : [text];
  }));
}

// --- start ---------------------------------------------------------------------------------------

function resized() {
  dots.resize();
  plane.resize();
  readColours();
  if (pool) changed();
}

async function begin() {
  const response = await fetch(`/api/pool?${new URLSearchParams({ pool: place.dataset.pool })}`);
  const found = await response.json();
  if (!response.ok) throw new Error(found.error);
  pool = found;
  size = Math.min(...pool.prompts.map((row) => row.completions.length));
  const spread = deviation(pool.prompts.flatMap((row) => row.proxy)) || 1;
  scale = 10 ** Math.round(Math.log10(spread));
  betaRange = [-2, 1.5].map((power) => power + Math.log10(scale));
  betas = betaGrid(10 ** betaRange[1], 10 ** betaRange[0]);
  write("size", `${pool.prompts.length} × ${size}`);
  prepareControls();
  readAddress();
  showPrompt();
  showPoints();
  resized();
}

addEventListener("resize", resized);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", resized);
begin().catch((error) => {
  banner.textContent = `The pool cannot be shown: ${error.message}`;
  banner.hidden = false;
});

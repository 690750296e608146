// The simulator's page: what the visitor has set, what follows from it, and where it is shown.
// The numbers come from tilt.js, the pictures from picture.js, the tour's steps from tour.js; telling.js
// shows the rest.

"use strict";

const FAULTS = { length: [0.3, 0.005], flattery: [3, 0.05], noise: [3, 0.05], tail: [2, 0.05] }; // most, step
const BETA_STEP = 0.005; // of its decimal logarithm
const BUDGET = 6; // milliseconds of a frame for the curves of further prompts
const NONE = { length: 0, flattery: 0, noise: 0, tail: 0 };

const place = at("simulator"), banner = at("banner");
const dots = new Picture(at("dots")), plane = new Picture(at("plane"));

// What the address holds. `draw` numbers the generated answer, `pick` is one that was clicked.
const state = { prompt: 0, setting: { beta: 1, ...NONE }, draw: 0, pick: -1, scope: "one", pins: [], tour: 0 };
let pool = null, size = 0, scale = 1, betas = [], betaRange = [0, 1];
let view = null, curves = null, job = null, due = false, writing = null;
const prepared = []; // columns of each prompt, with what its dots look like

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
  if (!prepared[number]) {
    const own = columnsOf(pool.prompts[number], number);
    const jitter = Float64Array.from(own.gold, (_, k) => 2 * uniform(STREAM.jitter, k) - 1);
    prepared[number] = { ...own, jitter, kinds: kindsOf(own.gold), spread: deviation(own.gold) };
  }
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
    goldSpread: own.spread,
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

// What need not follow a drag frame by frame: tables and the address.
function settle() {
  if (!pool || due) return;
  showHeaviest();
  showChosen();
  showPins();
  write("said", at("verdict").textContent);
  at("beta").setAttribute("aria-valuetext", short(state.setting.beta));
  const wanted = address();
  if (location.hash !== wanted) history.replaceState(null, "", wanted);
  place.dataset.settled = "yes";
}

// --- the tour ------------------------------------------------------------------------------------

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

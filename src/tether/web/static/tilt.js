// The mathematics of the simulator: numbers in, numbers out, no page. Equations and sources are in
// core/tilt.py, which the tests compare these functions with.

"use strict";

// --- a tilt --------------------------------------------------------------------------------------

// Weights ∝ exp(r/β) of samples of the reference.
function tiltWeights(scores, beta, out = new Float64Array(scores.length)) {
  let best = -Infinity, total = 0;
  for (let k = 0; k < scores.length; k++) best = Math.max(best, scores[k]);
  for (let k = 0; k < scores.length; k++) total += out[k] = Math.exp((scores[k] - best) / beta);
  for (let k = 0; k < scores.length; k++) out[k] /= total;
  return out;
}

// Nats from the reference: Σ w log(N w).
function tiltKL(weights) {
  const size = weights.length;
  let sum = 0;
  for (let k = 0; k < size; k++) if (weights[k] > 0) sum += weights[k] * Math.log(size * weights[k]);
  return Math.max(sum, 0);
}

// 1 / Σ w²: how many samples carry the weights.
function effectiveSamples(weights) {
  let sum = 0;
  for (let k = 0; k < weights.length; k++) sum += weights[k] * weights[k];
  return 1 / sum;
}

function expected(weights, values) {
  let sum = 0;
  for (let k = 0; k < weights.length; k++) sum += weights[k] * values[k];
  return sum;
}

function mean(values) {
  let sum = 0;
  for (let k = 0; k < values.length; k++) sum += values[k];
  return sum / values.length;
}

// What the page says of weights: proxy and gold in their own units, distances in nats.
function measures(weights, proxy, gold) {
  const kl = tiltKL(weights);
  return {
    kl,
    entropy: Math.log(weights.length) - kl,
    ess: effectiveSamples(weights),
    proxy: expected(weights, proxy),
    gold: expected(weights, gold),
  };
}

// --- best of n -----------------------------------------------------------------------------------

// For many n at once: weights C(i-1, n-1) / C(N, n) by rank, shared by samples of equal score.
function bestOfN(scores, counts) {
  const size = scores.length;
  const order = Array.from(scores.keys()).sort((a, b) => scores[a] - scores[b]);
  const factorial = new Float64Array(size + 1); // logarithms
  for (let k = 1; k <= size; k++) factorial[k] = factorial[k - 1] + Math.log(k);
  const choose = (n, k) => factorial[n] - factorial[k] - factorial[n - k];
  return counts.map((n) => {
    const weights = new Float64Array(size);
    for (let first = 0, end; first < size; first = end) {
      let sum = 0;
      for (end = first; end < size && scores[order[end]] === scores[order[first]]; end++) {
        if (end >= n - 1) sum += Math.exp(choose(end, n - 1) - choose(size, n));
      }
      for (let rank = first; rank < end; rank++) weights[order[rank]] = sum / (end - first);
    }
    return weights;
  });
}

const bestOfNBound = (n) => Math.log(n) - (n - 1) / n;

// 1, 2, 4, … up to all samples.
const powersUpTo = (size) => Array.from({ length: Math.floor(Math.log2(size)) + 1 }, (_, k) => 2 ** k);

// --- draws ---------------------------------------------------------------------------------------
// A draw is a function of (stream, prompt, completion, number): the same on every machine, and on
// every visit of a shared address.

const STREAM = { noise: 0, tail: 10, answer: 20, jitter: 30 };

function mixed(bits) {
  bits ^= bits >>> 16;
  bits = Math.imul(bits, 0x7feb352d);
  bits ^= bits >>> 15;
  bits = Math.imul(bits, 0x846ca68b);
  return (bits ^ (bits >>> 16)) >>> 0;
}

// In (0, 1).
function uniform(...parts) {
  let bits = 0;
  for (const part of parts) bits = mixed((bits ^ part) + 0x9e3779b9);
  return (bits + 0.5) / 2 ** 32;
}

// Box and Muller's.
function normal(stream, prompt, completion) {
  const radius = Math.sqrt(-2 * Math.log(uniform(stream, prompt, completion, 0)));
  return radius * Math.cos(2 * Math.PI * uniform(stream, prompt, completion, 1));
}

// Student's t with three degrees of freedom: its mean is 0, and now and then it is enormous.
function student(stream, prompt, completion) {
  const [z, a, b, c] = [0, 1, 2, 3].map((k) => normal(stream + k, prompt, completion));
  return z / Math.sqrt((a * a + b * b + c * c) / 3);
}

// argmax of r/β + Gumbel noise is a draw from the weights. While β moves, the noise stays: the
// answer changes only where another one overtakes it.
function gumbels(prompt, size, number) {
  return Float64Array.from({ length: size }, (_, k) => {
    return -Math.log(-Math.log(uniform(STREAM.answer, prompt, k, number)));
  });
}

function drawn(scores, beta, noise) {
  let best = 0, top = -Infinity;
  for (let k = 0; k < scores.length; k++) {
    const reach = scores[k] / beta + noise[k];
    if (reach > top) [best, top] = [k, reach];
  }
  return best;
}

// --- a proxy with faults -------------------------------------------------------------------------

// Columns of a prompt that the proxy's faults are made of; length and flattery around their means,
// so that a fault leaves the reference's mean score where it was.
function columnsOf(row, number) {
  const size = row.completions.length;
  const centred = (values) => {
    const middle = mean(values);
    return Float64Array.from(values, (value) => value - middle);
  };
  const draws = (law, stream) => Float64Array.from({ length: size }, (_, k) => law(stream, number, k));
  return {
    proxy: Float64Array.from(row.proxy),
    gold: Float64Array.from(row.gold),
    length: centred(row.tokens),
    flattery: row.flattery ? centred(row.flattery) : new Float64Array(size),
    noise: draws(normal, STREAM.noise),
    tail: draws(student, STREAM.tail),
  };
}

// proxy + length·(tokens - mean) + flattery·(phrases - mean) + noise·z + tail·t
function faulty(columns, setting, out = new Float64Array(columns.proxy.length)) {
  for (let k = 0; k < out.length; k++) {
    out[k] = columns.proxy[k] + setting.length * columns.length[k] +
      setting.flattery * columns.flattery[k] + setting.noise * columns.noise[k] +
      setting.tail * columns.tail[k];
  }
  return out;
}

// --- curves --------------------------------------------------------------------------------------

const STEPS = 64;

// β from the nearest tilt to the farthest.
function betaGrid(high, low) {
  return Array.from({ length: STEPS }, (_, k) => high * (low / high) ** (k / (STEPS - 1)));
}

// Gains over the reference of one prompt, for every β and every n.
function curvesOf(proxy, gold, betas) {
  const start = { proxy: mean(proxy), gold: mean(gold) };
  const gains = (weights) => {
    const found = measures(weights, proxy, gold);
    return { ...found, proxy: found.proxy - start.proxy, gold: found.gold - start.gold };
  };
  const scratch = new Float64Array(proxy.length);
  const counts = powersUpTo(proxy.length);
  return {
    tilts: betas.map((beta) => ({ beta, ...gains(tiltWeights(proxy, beta, scratch)) })),
    chosen: bestOfN(proxy, counts).map((weights, k) => {
      return { n: counts[k], bound: bestOfNBound(counts[k]), ...gains(weights) };
    }),
  };
}

// The mean over prompts of what `curvesOf` found for each.
function meanCurves(every) {
  const among = (rows) => Object.fromEntries(Object.keys(rows[0]).map((key) => {
    return [key, mean(rows.map((row) => row[key]))];
  }));
  const shortest = Math.min(...every.map((one) => one.chosen.length));
  return {
    tilts: every[0].tilts.map((_, k) => among(every.map((one) => one.tilts[k]))),
    chosen: every[0].chosen.slice(0, shortest).map((_, k) => among(every.map((one) => one.chosen[k]))),
  };
}

// --- what the pool cannot know -------------------------------------------------------------------

const ENOUGH = 5; // effective samples
const NEAR_CAP = 0.85; // of log N nats

const unsure = (found, size) => found.ess < ENOUGH || found.kl > NEAR_CAP * Math.log(size);

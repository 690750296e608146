// The two pictures of the simulator, drawn on canvas: answers as dots, and the plane of gain and KL.

"use strict";

const SMALL = "12px system-ui, sans-serif";
const MARGIN = { left: 58, right: 14, top: 12, bottom: 36 };

// The sheet's colours, read again when the scheme changes.
let colours = {};

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["text", "muted", "line", "surface", "accent", "bad", "edge", "proxy", "gold"];
  colours = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

// --- axes ----------------------------------------------------------------------------------------

// Round places between two ends: 1, 2 or 5 times a power of ten apart.
function ticks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= rough);
  const first = Math.ceil(low / step);
  const count = Math.floor(high / step) - first + 1;
  return Array.from({ length: Math.max(count, 0) }, (_, k) => (first + k) * step);
}

const told = (value) => String(Number(value.toPrecision(3))).replace("-", "−");

// A range with room around it.
function roomy(values, share = 0.06) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (!(high > low)) return [low - 1, high + 1];
  return [low - share * (high - low), high + share * (high - low)];
}

// A canvas with scales; everything after `begin` is in pixels of the page.
class Picture {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d");
    this.resize();
  }

  resize() {
    const { clientWidth, clientHeight } = this.canvas;
    const ratio = devicePixelRatio || 1;
    this.width = clientWidth;
    this.height = clientHeight;
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    this.pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  }

  begin(xRange, yRange, xName, yName) {
    const { pen, width, height } = this;
    const wide = width - MARGIN.left - MARGIN.right, high = height - MARGIN.top - MARGIN.bottom;
    this.x = (value) => MARGIN.left + wide * (value - xRange[0]) / (xRange[1] - xRange[0]);
    this.y = (value) => MARGIN.top + high * (yRange[1] - value) / (yRange[1] - yRange[0]);
    pen.clearRect(0, 0, width, height);
    pen.font = SMALL;
    pen.lineWidth = 1;
    pen.strokeStyle = colours.line;
    pen.fillStyle = colours.muted;
    pen.textAlign = "center";
    pen.textBaseline = "top";
    for (const value of ticks(...xRange, width / 90)) {
      this.line([[this.x(value), MARGIN.top], [this.x(value), height - MARGIN.bottom]]);
      pen.fillText(told(value), this.x(value), height - MARGIN.bottom + 5);
    }
    pen.fillText(xName, MARGIN.left + wide / 2, height - 15);
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const value of ticks(...yRange, height / 60)) {
      this.line([[MARGIN.left, this.y(value)], [width - MARGIN.right, this.y(value)]]);
      pen.fillText(told(value), MARGIN.left - 6, this.y(value));
    }
    pen.save();
    pen.translate(10, MARGIN.top + high / 2);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "center";
    pen.fillText(yName, 0, 0);
    pen.restore();
    pen.save();
    pen.beginPath();
    pen.rect(MARGIN.left, 0, wide + MARGIN.right, height - MARGIN.bottom + 1);
    pen.clip();
  }

  end() {
    this.pen.restore();
  }

  line(places, dash = []) {
    if (!places.length) return;
    this.pen.setLineDash(dash);
    this.pen.beginPath();
    places.forEach(([x, y], k) => (k ? this.pen.lineTo(x, y) : this.pen.moveTo(x, y)));
    this.pen.stroke();
    this.pen.setLineDash([]);
  }

  disc(x, y, radius) {
    this.pen.beginPath();
    this.pen.arc(x, y, radius, 0, 2 * Math.PI);
  }

  diamond(x, y, size) {
    this.pen.beginPath();
    this.pen.moveTo(x, y - size);
    this.pen.lineTo(x + size, y);
    this.pen.lineTo(x, y + size);
    this.pen.lineTo(x - size, y);
    this.pen.closePath();
  }
}

// --- answers as dots -----------------------------------------------------------------------------

// Areas are weights. Gold scores that tie are spread a little, so that dots do not hide each other.
function drawDots(picture, view) {
  const { pen } = picture;
  const { proxy, gold, weights, start, now, shown, faded, kinds } = view;
  const size = proxy.length, unit = 3.2 * Math.sqrt(256 / Math.max(size, 256));
  picture.begin(roomy(proxy), roomy(gold, 0.1), view.proxyName, view.goldName);
  const spread = 0.012 * picture.height;
  const spots = Array.from({ length: size }, (_, k) => {
    const radius = Math.max(1.1, unit * Math.sqrt(size * weights[k]));
    return [picture.x(proxy[k]), picture.y(gold[k]) + spread * view.jitter[k], Math.min(radius, 46)];
  });
  picture.spots = spots;
  const shades = faded ? [colours.muted, colours.muted, colours.muted] : [colours.bad, colours.edge, colours.accent];
  for (const large of [true, false]) {
    for (const kind of [0, 1, 2]) {
      pen.fillStyle = shades[kind];
      pen.strokeStyle = colours.surface;
      for (let k = 0; k < size; k++) {
        const [x, y, radius] = spots[k];
        if (kinds[k] !== kind || radius > 9 !== large) continue;
        pen.globalAlpha = radius < 1.5 ? 0.4 : 0.6;
        picture.disc(x, y, radius);
        pen.fill();
        if (large) pen.stroke();
      }
    }
  }
  pen.globalAlpha = 1;
  drawMeans(picture, start, now, faded);
  const [x, y, radius] = spots[shown];
  pen.strokeStyle = colours.text;
  pen.lineWidth = 2;
  picture.disc(x, y, Math.max(radius, 4) + 3);
  pen.stroke();
  picture.end();
}

// From the reference's mean to the policy's.
function drawMeans(picture, start, now, faded) {
  const { pen } = picture;
  const from = [picture.x(start.proxy), picture.y(start.gold)];
  const to = [picture.x(now.proxy), picture.y(now.gold)];
  pen.strokeStyle = faded ? colours.muted : colours.text;
  pen.lineWidth = 1;
  picture.line([[from[0], MARGIN.top], [from[0], picture.height - MARGIN.bottom]], [3, 4]);
  picture.line([[MARGIN.left, from[1]], [picture.width, from[1]]], [3, 4]);
  pen.lineWidth = 2.5;
  picture.line([from, to]);
  pen.fillStyle = pen.strokeStyle;
  const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
  if (length < 8) return;
  const along = Math.atan2(to[1] - from[1], to[0] - from[0]);
  pen.beginPath();
  for (const turn of [0, 2.5, -2.5]) {
    pen.lineTo(to[0] + 9 * Math.cos(along + turn), to[1] + 9 * Math.sin(along + turn));
  }
  pen.fill();
}

// The answer under the pointer; -1 where there is none.
function dotAt(picture, x, y) {
  let best = -1, nearest = 14;
  picture.spots?.forEach(([left, top, radius], k) => {
    const distance = Math.hypot(x - left, y - top) - radius;
    if (distance < nearest && distance < 8) [best, nearest] = [k, distance];
  });
  return best;
}

// --- the plane of gain and KL --------------------------------------------------------------------

const SIDES = ["proxy", "gold"];

function drawPlane(picture, view) {
  const { pen } = picture;
  const { curves, points, size, now, pins } = view;
  const cap = Math.log(size);
  const heights = [...curves.tilts, ...curves.chosen, ...points].flatMap((one) => [one.proxy, one.gold]);
  const farthest = Math.max(cap, ...points.map((one) => one.kl));
  const places = [...heights, ...[now, ...pins].flatMap((one) => [one.proxy, one.gold])];
  picture.begin([0, farthest * 1.06], roomy(places), "KL to the reference, nats", "gain over the reference");
  drawCap(picture, cap);
  for (const side of SIDES) {
    drawCurve(picture, curves.tilts, side, size);
    drawChosen(picture, curves.chosen, side);
  }
  drawPoints(picture, points);
  for (const side of SIDES) {
    for (const pin of pins) drawMark(picture, pin, side, pin.name);
    drawMark(picture, now, side, "");
  }
  picture.end();
}

function drawCap(picture, cap) {
  const { pen } = picture;
  const x = picture.x(cap);
  pen.globalAlpha = 0.35;
  pen.fillStyle = colours.line;
  pen.fillRect(x, MARGIN.top, picture.width - x, picture.height - MARGIN.top - MARGIN.bottom);
  pen.globalAlpha = 1;
  pen.strokeStyle = colours.muted;
  picture.line([[x, MARGIN.top], [x, picture.height - MARGIN.bottom]], [6, 4]);
  pen.strokeStyle = colours.edge;
  picture.line([[MARGIN.left, picture.y(0)], [picture.width, picture.y(0)]]);
}

// Solid as far as the pool knows, then grey and dashed.
function drawCurve(picture, tilts, side, size) {
  const { pen } = picture;
  const place = (one) => [picture.x(one.kl), picture.y(one[side])];
  const found = tilts.findIndex((one) => unsure(one, size));
  const last = found < 0 ? tilts.length : Math.max(found, 1);
  pen.lineWidth = 1.5;
  pen.strokeStyle = colours.muted;
  picture.line(tilts.slice(last - 1).map(place), [5, 4]);
  pen.lineWidth = 3;
  pen.strokeStyle = colours[side];
  picture.line(tilts.slice(0, last).map(place));
}

// Best of n where it is, and hollow where its bound says it is at most.
function drawChosen(picture, chosen, side) {
  const { pen } = picture;
  pen.strokeStyle = pen.fillStyle = colours[side];
  pen.lineWidth = 1;
  picture.line(chosen.map((one) => [picture.x(one.kl), picture.y(one[side])]), [1, 3]);
  for (const one of chosen) {
    picture.disc(picture.x(one.kl), picture.y(one[side]), 2.6);
    pen.fill();
    if (one.bound - one.kl < 0.02) continue;
    picture.disc(picture.x(one.bound), picture.y(one[side]), 2.6);
    pen.stroke();
  }
}

// Measured models: their runs as thin lines, names where there is room.
function drawPoints(picture, points) {
  const { pen } = picture;
  const taken = [];
  pen.lineWidth = 1;
  for (const policy of new Set(points.map((one) => one.policy))) {
    const own = points.filter((one) => one.policy === policy);
    own.sort((a, b) => (a.step ?? Infinity) - (b.step ?? Infinity));
    for (const side of SIDES) {
      pen.strokeStyle = pen.fillStyle = colours[side];
      pen.globalAlpha = 0.45;
      picture.line(own.map((one) => [picture.x(one.kl), picture.y(one[side])]));
      pen.globalAlpha = 1;
      for (const one of own) {
        picture.diamond(picture.x(one.kl), picture.y(one[side]), one.step === null ? 6 : 3.5);
        side === "gold" ? pen.fill() : pen.stroke();
      }
    }
  }
  pen.fillStyle = colours.text;
  pen.textAlign = "left";
  for (const one of points.filter((point) => point.step === null)) {
    const wide = pen.measureText(one.policy).width;
    const x = Math.min(picture.x(one.kl) + 8, picture.width - wide - 4), y = picture.y(one.gold) + 13;
    if (taken.some(([left, top, width]) => Math.abs(y - top) < 13 && x < left + width && left < x + wide)) continue;
    taken.push([x, y, wide]);
    pen.fillText(one.policy, x, y);
  }
}

function drawMark(picture, one, side, name) {
  const { pen } = picture;
  const x = picture.x(one.kl), y = picture.y(one[side]);
  pen.fillStyle = colours[side];
  pen.strokeStyle = colours.surface;
  pen.lineWidth = 2.5;
  picture.disc(x, y, name ? 9 : 7.5);
  pen.fill();
  pen.stroke();
  if (!name) return;
  pen.fillStyle = colours.surface;
  pen.textAlign = "center";
  pen.font = "bold 11px system-ui, sans-serif";
  pen.fillText(name, x, y + 0.5);
  pen.font = SMALL;
}

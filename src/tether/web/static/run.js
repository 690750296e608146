// A run's page: charts of all that has been logged, and a stream of what is logged from now on.

"use strict";

const RENEW = 1500; // milliseconds between renewals of the rest of the page
const AGAIN = 5000; // milliseconds between looks at a run that is laid over and still trains
const place = document.getElementById("charts");
const charts = new Charts(place);
const stage = place.dataset.stage;
const overlaid = JSON.parse(place.dataset.with);
let stream = null, position = "", renewal = null, loading = null, again = false;

const address = (kind, name) => `/api/${kind}/${name.split("/").map(encodeURIComponent).join("/")}`;

async function rows(name) {
  const response = await fetch(address("rows", name), { signal: AbortSignal.timeout(20000) });
  if (!response.ok) throw new Error(`${name}: the server says ${response.status}`);
  return { run: name, ...(await response.json()) };
}

// All series anew; of a long file first a glance, then all of it.
async function load() {
  if (loading) { again = true; return loading; }
  loading = (async () => {
    try {
      const found = await Promise.all([stage, ...overlaid].map(rows));
      await plotly;
      charts.show(found);
      position = found[0].position;
      place.dataset.ready = "yes";
      place.dataset.share = Math.min(...found.map((one) => one.share));
      again ||= found.some((one) => one.share < 1);
    } catch (error) {
      warn(error.message);
    }
  })();
  await loading;
  loading = null;
  if (again) { again = false; setTimeout(load, 50); }
  else follow();
}

function follow() {
  if (stream || document.hidden) return;
  stream = new EventSource(`${address("follow", stage)}?after=${encodeURIComponent(position)}`);
  stream.addEventListener("rows", (event) => {
    position = event.lastEventId;
    if (!charts.append(JSON.parse(event.data))) reload();
    soon();
  });
  stream.addEventListener("reload", () => { reload(); soon(); });
  stream.addEventListener("changed", (event) => {
    if (JSON.parse(event.data).includes("monitor.jsonl")) reload();
    soon();
  });
  stream.onopen = () => { banner.hidden = true; soon(); };
  stream.onerror = () => {
    warn("the server cannot be reached; trying again");
    if (stream?.readyState === EventSource.CLOSED) { close(); setTimeout(load, 2000); }
  };
}

function close() {
  stream?.close();
  stream = null;
}

function reload() {
  close();
  load();
}

function soon() {
  renewal ??= setTimeout(async () => {
    renewal = null;
    await renew();
    const { running } = document.getElementById("tiles").dataset;
    if (!location.pathname.endsWith(stage) && running !== stage) location.reload();
  }, RENEW);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) close();
  else load();
});
document.addEventListener("colours", () => load());
if (overlaid.length) setInterval(() => { if (!document.hidden) load(); }, AGAIN);
load();

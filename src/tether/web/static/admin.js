// The administrator's page renews its live part; without this file a reload does the same.

"use strict";

const EVERY = 4000; // milliseconds

async function renew() {
  const live = document.getElementById("live");
  const open = live.querySelector("details")?.open;
  const isUsed = live.contains(document.activeElement) || !getSelection().isCollapsed;
  if (document.hidden || isUsed) return;
  const banner = document.getElementById("banner");
  try {
    const response = await fetch("/admin/live", { signal: AbortSignal.timeout(20000) });
    if (!response.ok) throw new Error(`the server says ${response.status}; reload the page`);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const fresh = document.adoptNode(page.getElementById("live"));
    if (open) fresh.querySelector("details")?.setAttribute("open", "");
    live.replaceWith(fresh);
    if (banner.dataset.mine) banner.hidden = true;
  } catch (error) {
    const reached = error.message.startsWith("the server says");
    banner.textContent = `Not up to date: ${reached ? error.message : "the server cannot be reached"}.`;
    banner.dataset.mine = "yes";
    banner.hidden = false;
  }
}

async function copyLink() {
  const link = document.getElementById("link");
  link.select();
  await navigator.clipboard?.writeText(link.value);
  document.getElementById("copy").textContent = "Copied";
}

const copy = document.getElementById("copy");
if (copy) {
  copy.hidden = false;
  copy.onclick = copyLink;
}
setInterval(renew, EVERY);

// The administrator's page renews its live parts; without this file a reload does the same.

"use strict";

const EVERY = 4000; // milliseconds
const banner = document.getElementById("banner");

async function renew() {
  if (document.hidden || !getSelection().isCollapsed) return;
  try {
    const response = await fetch("/admin", { signal: AbortSignal.timeout(20000) });
    if (!response.ok) return warn(`the server says ${response.status}; reload the page`);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    document.querySelectorAll("[data-live]").forEach((old) => replace(old, page.getElementById(old.id)));
    if (banner.dataset.mine) banner.hidden = true;
  } catch {
    warn("the server cannot be reached");
  }
}

// A part in which somebody is at work stays as it is until they leave it.
function replace(old, fresh) {
  if (old.contains(document.activeElement)) return;
  const opened = [...old.querySelectorAll("details[open] > summary")].map((one) => one.textContent);
  for (const one of fresh.querySelectorAll("details > summary")) {
    one.parentElement.open = opened.includes(one.textContent);
  }
  old.replaceWith(document.adoptNode(fresh));
}

function warn(reason) {
  banner.textContent = `Not up to date: ${reason}.`;
  banner.dataset.mine = "yes";
  banner.hidden = false;
}

async function copyLink() {
  const link = document.getElementById("link");
  link.select();
  await navigator.clipboard?.writeText(link.value);
  copy.textContent = "Copied";
}

const copy = document.getElementById("copy");
if (copy) {
  copy.hidden = false;
  copy.onclick = copyLink;
}
setInterval(renew, EVERY);

// The parts of a page that change by themselves are fetched anew; a reload does the same.

"use strict";

const banner = document.getElementById("banner");
let renewing = false;

async function renew() {
  if (document.hidden || renewing || !getSelection().isCollapsed) return;
  renewing = true;
  try {
    const response = await fetch(location.href, { signal: AbortSignal.timeout(20000) });
    if (!response.ok) return warn(`the server says ${response.status}; reload the page`);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    document.querySelectorAll("[data-live]").forEach((old) => replace(old, page.getElementById(old.id)));
    banner.hidden = true;
  } catch {
    warn("the server cannot be reached");
  } finally {
    renewing = false;
  }
}

// A part in which somebody is at work stays as it is until they leave it.
function replace(old, fresh) {
  if (!fresh || old.contains(document.activeElement)) return;
  const opened = [...old.querySelectorAll("details[open] > summary")].map((one) => one.textContent);
  for (const one of fresh.querySelectorAll("details > summary")) {
    one.parentElement.open = opened.includes(one.textContent);
  }
  old.replaceWith(document.adoptNode(fresh));
}

function warn(reason) {
  banner.textContent = `Not up to date: ${reason}.`;
  banner.hidden = false;
}

if (!document.getElementById("charts")) setInterval(renew, 4000);

// Dragging a card by its grip, with mouse, pen or finger.

"use strict";

const EDGE = 60; // pixels from the window's edge, where dragging scrolls

function dragCards(box, drop) {
  box.addEventListener("pointerdown", (event) => {
    const grip = event.target.closest(".grip");
    if (!grip || event.button) return;
    event.preventDefault();
    grip.setPointerCapture(event.pointerId);
    follow(grip, drop);
  });
}

function follow(grip, drop) {
  const dragged = grip.closest(".card");
  let goal = null;
  dragged.classList.add("dragged");
  grip.onpointermove = ({ clientX, clientY }) => {
    scrollAt(clientY);
    goal?.classList.remove("goal");
    goal = document.elementFromPoint(clientX, clientY)?.closest(".card");
    if (goal === dragged) goal = null;
    goal?.classList.add("goal");
  };
  grip.onpointerup = grip.onpointercancel = ({ type }) => {
    grip.onpointermove = grip.onpointerup = grip.onpointercancel = null;
    goal?.classList.remove("goal");
    dragged.classList.remove("dragged");
    if (goal && type === "pointerup") drop(dragged, goal);
  };
}

function scrollAt(y) {
  if (y < EDGE) window.scrollBy(0, -14);
  if (y > innerHeight - EDGE) window.scrollBy(0, 14);
}

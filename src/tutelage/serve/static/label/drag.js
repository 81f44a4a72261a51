// Dragging with mouse, pen or finger (pointer events). The card follows the pointer; nothing else moves until it is let
// go, so that the places to drop it at stay where they are seen.

const SLACK = 6; // pixels before a press becomes a drag
const EDGE = 70; // pixels from the window's edge within which it scrolls

/** Let `handle` drag `card`. `target(y)`: where a card let go at this height would go; `hint(target)` shows it, null
 * ends the showing; `drop(target)`. */
export function dragging(handle, card, { target, hint, drop }) {
  let from = null; // {x, y, scroll, id}, while pressed
  let at = null; // the pointer's last place, while dragged
  let justDragged = false;

  function begin() {
    const { top, left } = card.getBoundingClientRect();
    card.classList.add("lifted"); // which makes a tall one short
    const box = card.getBoundingClientRect();
    from.x += box.left - left;
    from.y += box.top - top;
    if (from.startY > box.bottom) from.y = box.top + 24; // grabbed where it no longer is
    document.documentElement.classList.add("dragging");
    addEventListener("keydown", escape, true);
    requestAnimationFrame(scrolling);
  }

  function follow() {
    const y = at.y - from.y + (scrollY - from.scroll);
    card.style.transform = `translate(${at.x - from.x}px, ${y}px)`;
    hint(target(at.y));
  }

  function scrolling() {
    if (!at) return;
    const near = at.y < EDGE ? at.y - EDGE : Math.max(0, at.y - (innerHeight - EDGE - 60));
    if (near) {
      scrollBy(0, near / 4);
      follow();
    }
    requestAnimationFrame(scrolling);
  }

  function end(dropped) {
    const place = at && dropped ? target(at.y) : null;
    if (at) {
      card.classList.remove("lifted");
      card.style.transform = "";
      document.documentElement.classList.remove("dragging");
      removeEventListener("keydown", escape, true);
      hint(null);
      justDragged = true;
      setTimeout(() => (justDragged = false));
    }
    from = at = null;
    for (const [name, act] of Object.entries(ends)) removeEventListener(name, act);
    if (place) drop(place);
  }

  function escape(event) {
    if (event.key !== "Escape") return;
    event.preventDefault();
    event.stopPropagation();
    end(false);
  }

  function moved(event) {
    if (event.pointerId !== from.id) return;
    if (!at && Math.hypot(event.clientX - from.x, event.clientY - from.y) < SLACK) return;
    const first = !at;
    at = { x: event.clientX, y: event.clientY };
    if (first) {
      handle.setPointerCapture(event.pointerId); // not sooner: a press alone stays a click of the button
      begin();
    }
    follow();
  }

  const ends = { pointermove: moved, pointerup: () => end(true), pointercancel: () => end(false) };

  handle.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !event.isPrimary || from) return;
    from = { x: event.clientX, y: event.clientY, startY: event.clientY, scroll: scrollY, id: event.pointerId };
    for (const [name, act] of Object.entries(ends)) addEventListener(name, act);
  });
  // a finger's drag is no scrolling: else the browser takes the next tap for the end of a fling, and swallows it
  handle.addEventListener("touchmove", (event) => from && event.preventDefault(), { passive: false });
  handle.addEventListener("click", (event) => {
    if (!justDragged) return;
    event.preventDefault();
    event.stopPropagation();
  }, true);
}

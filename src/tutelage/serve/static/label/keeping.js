// What the browser keeps while one works: the time spent on an item, its unsent draft, and whether single keys are on.

/** A clock that stands while the page is hidden, or nothing was done on it for two minutes. */
export class Clock {
  static IDLE = 120;

  constructor() {
    this.restart();
    for (const what of ["pointerdown", "keydown", "wheel", "touchmove"]) {
      addEventListener(what, () => this.#count(true), { passive: true, capture: true });
    }
    document.addEventListener("visibilitychange", () => this.#count(!document.hidden));
  }

  restart(seconds = 0) {
    this.total = seconds;
    this.since = this.active = performance.now();
  }

  #count(active) {
    const now = performance.now();
    if (this.#running()) this.total += Math.min(now, this.active + Clock.IDLE * 1000) / 1000 - this.since / 1000;
    this.since = now;
    this.active = active ? now : Number.NEGATIVE_INFINITY;
  }

  #running() {
    return this.active + Clock.IDLE * 1000 > this.since;
  }

  /** Seconds so far. */
  get seconds() {
    const until = Math.min(performance.now(), this.active + Clock.IDLE * 1000);
    return Math.max(0, this.total + (this.#running() && !document.hidden ? (until - this.since) / 1000 : 0));
  }
}

/** "0:42". */
export function clockWords(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

const place = (person, item) => `tutelage.draft.${person}.${item}`;

/** The draft of an item, null without one. It outlives a reload, not the tab. */
export function draftOf(person, item) {
  try { return JSON.parse(sessionStorage.getItem(place(person, item))); } catch { return null; }
}

export function keepDraft(person, item, draft) {
  try { sessionStorage.setItem(place(person, item), JSON.stringify(draft)); } catch { /* then it lives as long as the page */ }
}

export function dropDraft(person, item) {
  try { sessionStorage.removeItem(place(person, item)); } catch { /* nothing was kept */ }
}

const KEYS = "tutelage.keys";

/** Whether single keys are shortcuts: people who dictate, or press keys by accident, can turn them off. */
export function keysOn() {
  try { return localStorage.getItem(KEYS) !== "off"; } catch { return true; }
}

export function setKeys(on) {
  try { localStorage.setItem(KEYS, on ? "on" : "off"); } catch { /* then only as long as the help is open */ }
}

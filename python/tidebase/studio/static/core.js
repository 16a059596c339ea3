// What every part of the page is made of: elements, signals, where we are (in the hash of the URL), and the clock.

import {
  html, render, useState, useEffect, useLayoutEffect, useRef, useMemo, useErrorBoundary,
} from "./vendor/htm-preact.js";

export {
  html, render, useState, useEffect, useLayoutEffect, useRef, useMemo, useErrorBoundary,
};

/** A value, and who wants to know when it is another one. @template T */
class Signal {
  /** @param {T} value */
  constructor(value) {
    this.now = value;
    this.told = new Set();
  }

  get value() { return this.now; }

  set value(value) {
    if (value === this.now) return;
    this.now = value;
    for (const tell of [...this.told]) tell();
  }

  /** @param {() => void} tell @returns {() => void} ends it */
  subscribe(tell) {
    this.told.add(tell);
    return () => { this.told.delete(tell); };
  }
}

/** @template T @param {T} value @returns {Signal<T>} */
export const signal = (value) => new Signal(value);

/**
 * The value of a signal; the component is drawn again when it changes.
 * @template T
 * @param {Signal<T>} source
 * @returns {T}
 */
export function useValue(source) {
  const [, again] = useState(0);
  const shown = source.value;
  useLayoutEffect(() => {
    const tell = () => again((n) => n + 1);
    if (source.value !== shown) tell();
    return source.subscribe(tell);
  }, [source]);
  return shown;
}

/** A component, drawn again only when one of these is another one: a drawing that useMemo keeps would keep all around it. @param {...string} names */
export const still = (/** @type {any} */ component, ...names) => /** @this {any} */ function (/** @type {any} */ props) {
  this.shouldComponentUpdate = (/** @type {any} */ next) => names.some((name) => next[name] !== props[name]);
  return html`<${component} ...${props} />`;
};

/** What stands in the hash: `#/runs/ID?tab=log` is `{path: ["runs", "ID"], query: {tab: "log"}}`. */
function read() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  return {
    path: path.split("/").filter(Boolean).map(decoded),
    query: Object.fromEntries(new URLSearchParams(query)),
  };
}

/** @param {string} text */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Where we are. */
export const place = signal(read());
addEventListener("hashchange", () => { place.value = read(); });

/** What stands behind a path: nothing of what is empty. @param {Record<string, any>} query */
export function searchOf(query) {
  const search = new URLSearchParams(Object.entries(query).filter(([, value]) => (value ?? "") !== "")).toString();
  return search && `?${search}`;
}

/**
 * A link to a place: `link(["runs", id], {tab: "log"})`.
 * @param {string[]} path
 * @param {Record<string, any>} [query]
 */
export function link(path, query = {}) {
  return `#/${path.map(encodeURIComponent).join("/")}${searchOf(query)}`;
}

/** @param {string[]} path @param {Record<string, any>} [query] */
export function go(path, query) {
  location.hash = link(path, query);
}

/**
 * Changes some of the query and stays; the former place is not kept in the history.
 * @param {Record<string, any>} changes
 */
export function change(changes) {
  const { path, query } = place.value;
  history.replaceState(null, "", link(path, { ...query, ...changes }));
  place.value = read();
}

/** The time, in milliseconds; it goes on every second while somebody looks. */
export const now = signal(Date.now());
setInterval(() => { if (!document.hidden) now.value = Date.now(); }, 1000);
document.addEventListener("visibilitychange", () => { now.value = Date.now(); });

/**
 * What is kept in this browser; not at all where that is forbidden.
 * @param {string} name
 * @param {any} [otherwise]
 */
export function remembered(name, otherwise = null) {
  try {
    return JSON.parse(localStorage.getItem(`tidebase-studio-${name}`) ?? "null") ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** @param {string} name */
export function remember(name, value) {
  try {
    localStorage.setItem(`tidebase-studio-${name}`, JSON.stringify(value));
  } catch { /* a private window */ }
}

/** What happened, for all to see and to hear: `{text, kind}`, the newest last. */
export const notices = signal(/** @type {{id: number, text: string, kind: string}[]} */ ([]));
let noticed = 0;

/** @param {string} text @param {"done" | "lost" | "error"} [kind] */
export function tell(text, kind = "done") {
  const id = ++noticed;
  notices.value = [...notices.value.slice(-3), { id, text, kind }];
  setTimeout(() => { notices.value = notices.value.filter((notice) => notice.id !== id); }, kind === "done" ? 5000 : 10000);
}

/** The dialog that is open: an element, or null. */
export const dialog = signal(null);

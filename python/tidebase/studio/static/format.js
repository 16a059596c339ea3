// How things are said: times, amounts, and texts of strangers.

/** @param {number} ms */
export function duration(ms) {
  const s = Math.max(ms, 0) / 1000;
  if (s < 0.9995) return `${Math.round(s * 1000)} ms`;
  if (s < 59.995) return `${s.toFixed(s < 10 ? 2 : 1)} s`;
  const whole = Math.round(s);
  for (const [size, unit, lesser, name] of /** @type {[number, string, number, string][]} */ ([
    [86400, "d", 3600, "h"], [3600, "h", 60, "m"], [60, "m", 1, "s"],
  ])) {
    if (whole >= size) return `${Math.floor(whole / size)}${unit} ${String(Math.floor((whole % size) / lesser)).padStart(2, "0")}${name}`;
  }
  return `${whole} s`;
}

/** So long, in round numbers. @param {number} seconds */
export const every = (seconds) => duration(seconds * 1000).replace(/ 00[a-z]$| ?\.0+(?= )/, "").replace(/\.0+ /, " ");

/** So long, without the smaller part: for what changes all the time. @param {number} ms */
export function about(ms) {
  const s = Math.round(Math.abs(ms) / 1000);
  for (const [size, unit] of /** @type {[number, string][]} */ ([[86400 * 365, "y"], [86400, "d"], [3600, "h"], [60, "m"]])) {
    if (s >= size) return `${Math.floor(s / size)}${unit}`;
  }
  return `${s}s`;
}

/** @param {string | null} iso @param {number} at */
export function ago(iso, at) {
  if (!iso) return "";
  const ms = at - Date.parse(iso);
  return ms >= -999 ? `${about(Math.max(ms, 0))} ago` : `in ${about(ms)}`;
}

const FULL = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, hourCycle: "h23" });
const SHORT = new Intl.DateTimeFormat(undefined, { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

export const ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone;

/** In the reader's time zone. @param {string | null} iso */
export const moment = (iso) => (iso ? FULL.format(new Date(iso)) : "");
/** @param {string} iso */
export const clock = (iso) => CLOCK.format(new Date(iso));
/** @param {string} iso */
export const short = (iso) => SHORT.format(new Date(iso));

const NUMBER = new Intl.NumberFormat(undefined);
/** @param {number | null | undefined} n */
export const count = (n) => (n === null || n === undefined ? "–" : NUMBER.format(n));

/** @param {number | null | undefined} usd */
export function money(usd) {
  if (usd === null || usd === undefined) return "–";
  return `$${usd === 0 ? "0" : Number(usd).toFixed(Math.abs(usd) < 1 ? 4 : 2)}`;
}

/** @param {number} bytes */
export function size(bytes) {
  return bytes < 10_000 ? `${count(bytes)} B` : bytes < 10_000_000 ? `${count(Math.round(bytes / 1000))} kB` : `${count(Math.round(bytes / 1e6))} MB`;
}

const BIDI = { "\u200e": "LRM", "\u200f": "RLM", "\u202a": "LRE", "\u202b": "RLE", "\u202c": "PDF", "\u202d": "LRO", "\u202e": "RLO", "\u2066": "LRI", "\u2067": "RLI", "\u2068": "FSI", "\u2069": "PDI" };

/** What would be invisible, or turn the text around, is shown as what it is. @param {unknown} text */
export function visible(text) {
  return String(text ?? "").replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (c) => {
    const code = c.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    if (code === 0x7f) return "\u2421";
    return `⟨${/** @type {any} */ (BIDI)[c] ?? code.toString(16)}⟩`;
  });
}

/** On one line, and not longer than that. @param {unknown} value @param {number} [most] */
export function brief(value, most = 160) {
  if (value === undefined || value === null) return "";
  const text = visible(typeof value === "string" ? value : JSON.stringify(value)).replace(/\s+/g, " ");
  return text.length > most ? `${text.slice(0, most)}…` : text;
}

/** @param {number} n @param {string} one @param {string} [many] */
export const times = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** JSON that a person typed. @param {string} text */
export function parsed(text) {
  try {
    return { value: JSON.parse(text), error: null };
  } catch (error) {
    return { value: undefined, error: `This is no JSON: ${/** @type {Error} */ (error).message}` };
  }
}

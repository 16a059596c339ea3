// The gateway's HTTP API, the same that everybody uses. The page lies one folder below it, wherever that is.

import { searchOf, signal } from "./core.js";

const BASE = new URL("../", document.baseURI);

/** For how long nothing may be heard, in milliseconds. */
const SILENT = 35_000;

/** Who looks: `{name, roles, keyed, version}`; null: nobody has signed in; undefined: not known yet. */
export const me = signal(/** @type {any} */ (undefined));

/** Whether the gateway answers. */
export const online = signal(true);

export class ApiError extends Error {
  /** @param {number} status */
  constructor(status, body) {
    super(typeof body?.error === "string" ? body.error : `the gateway answered with ${status}`);
    this.status = status;
    this.code = body?.code ?? "";
    this.body = body;
  }
}

/** @param {TemplateStringsArray} texts @param {any[]} values */
export function path(texts, ...values) {
  return texts.reduce((all, text, n) => all + encodeURIComponent(String(values[n - 1])) + text);
}

/** @param {string} role */
export function may(role) {
  return Boolean(me.value?.roles.includes(role));
}

/**
 * @param {string} method
 * @param {string} where
 * @param {any} [body]
 * @param {AbortSignal} [abort]
 * @returns {Promise<any>}
 */
async function ask(method, where, body, abort = undefined) {
  let response, answer = null;
  try {
    response = await fetch(new URL(where, BASE), {
      method,
      headers: body === undefined ? {} : { "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: abort ?? (method === "GET" ? AbortSignal.timeout(SILENT) : null),
    });
    answer = await response.json();
  } catch (error) {
    if (abort?.aborted) throw error;
  }
  online.value = answer !== null;  // what is no JSON was said by somebody in between
  if (!response || !answer) throw new ApiError(response?.status ?? 0, { error: "The gateway cannot be reached.", code: "offline" });
  if (response.status === 401 && where !== "session") me.value = null;
  if (!response.ok) throw new ApiError(response.status, answer);
  return answer;
}

/**
 * @param {string} where
 * @param {Record<string, any>} [query]
 * @param {AbortSignal} [abort]
 */
export function get(where, query = {}, abort = undefined) {
  return ask("GET", where + searchOf(query), undefined, abort);
}

/** @param {string} where @param {any} [body] */
export const post = (where, body = {}) => ask("POST", where, body);
/** @param {string} where */
export const put = (where, body) => ask("PUT", where, body);
/** @param {string} where */
export const remove = (where) => ask("DELETE", where);

export async function whoAmI() {
  try {
    me.value = await get("me");
  } catch (error) {
    if (/** @type {ApiError} */ (error).status !== 401) throw error;
  }
}

/** @param {{key?: string, ticket?: string}} what */
export async function signIn(what) {
  me.value = await post("session", what);
}

export async function signOut() {
  await remove("session");
  me.value = null;
}

/**
 * Follows a stream of the gateway for as long as the page wants it and somebody looks: a browser has few connections to one
 * host. It comes back by itself when the connection breaks, when nothing is heard of it, which is twice as long as the
 * gateway is ever silent, and where the browser gives up because the answer was an error.
 * @param {() => string} where asked anew at each connection
 * @param {Record<string, (data: any) => void>} handlers by the type of the message
 * @param {(state: "live" | "lost") => void} told
 * @returns {() => void} ends it
 */
export function follow(where, handlers, told) {
  /** @type {EventSource | undefined} */
  let source;
  let timer = 0;
  const again = (/** @type {number} */ ms) => { clearTimeout(timer); timer = setTimeout(open, ms); };
  const open = () => {
    stop();
    if (document.hidden) return;
    source = new EventSource(new URL(where(), BASE));
    again(SILENT);
    source.onopen = () => { online.value = true; again(SILENT); told("live"); };
    for (const type of [...Object.keys(handlers), "alive"]) source.addEventListener(type, (message) => { again(SILENT); handlers[type]?.(JSON.parse(message.data)); });
    source.onerror = () => {
      told("lost");
      if (source?.readyState === EventSource.CLOSED) again(5000);  // an error, or 204: the run is over
    };
  };
  const stop = () => { clearTimeout(timer); source?.close(); };
  document.addEventListener("visibilitychange", open);
  open();
  return () => { document.removeEventListener("visibilitychange", open); stop(); };
}

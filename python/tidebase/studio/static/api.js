// The gateway's HTTP API, the same that everybody uses. The page lies one folder below it, wherever that is.

import { signal } from "./core.js";

const BASE = new URL("../", document.baseURI);

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
  let response;
  try {
    response = await fetch(new URL(where, BASE), {
      method,
      credentials: "same-origin",
      headers: body === undefined ? {} : { "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: abort,
    });
  } catch (error) {
    if (/** @type {any} */ (error)?.name === "AbortError") throw error;
    online.value = false;
    throw new ApiError(0, { error: "The gateway cannot be reached.", code: "offline" });
  }
  online.value = true;
  const answer = await response.json().catch(() => null);
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
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const search = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
  return ask("GET", search ? `${where}?${search}` : where, undefined, abort);
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
 * Follows a stream of the gateway for as long as the page wants it. It comes back by itself when the connection breaks,
 * also where the browser gives up because the answer was an error.
 * @param {() => string} where asked anew at each connection
 * @param {Record<string, (data: any) => void>} handlers by the type of the message
 * @param {(state: "live" | "lost" | "over") => void} [told]
 * @returns {() => void} ends it
 */
export function follow(where, handlers, told = () => {}) {
  /** @type {EventSource | null} */
  let source = null;
  let timer = 0;
  let ended = false;
  const open = () => {
    source = new EventSource(new URL(where(), BASE), { withCredentials: false });
    source.onopen = () => { online.value = true; told("live"); };
    for (const [type, handle] of Object.entries(handlers)) {
      source.addEventListener(type, (message) => handle(JSON.parse(/** @type {MessageEvent} */ (message).data)));
    }
    source.onerror = () => {
      if (ended || source === null) return;
      told("lost");
      if (source.readyState === EventSource.CLOSED) {  // an error, or 204: the run is over
        source.close();
        timer = setTimeout(open, 5000);
      }
    };
  };
  open();
  return () => {
    ended = true;
    clearTimeout(timer);
    source?.close();
  };
}

// In what two values differ: the paths, and what stands there in either.

import { html } from "./core.js";
import { brief } from "./format.js";

/**
 * @param {string} [at]
 * @param {{path: string, kind: "added" | "removed" | "changed", one?: any, other?: any}[]} [found]
 */
export function differences(one, other, at = "", found = []) {
  if (found.length >= 500 || one === other) return found;
  const object = (value) => value !== null && typeof value === "object";
  if (object(one) && object(other) && Array.isArray(one) === Array.isArray(other)) {
    const list = Array.isArray(one);
    for (const key of new Set([...Object.keys(one), ...Object.keys(other)])) {
      const path = list ? `${at}[${key}]` : /^[\p{L}_][\p{L}\p{N}_]*$/u.test(key) ? `${at}${at ? "." : ""}${key}` : `${at}[${JSON.stringify(key)}]`;
      const here = Object.hasOwn(one, key), there = Object.hasOwn(other, key);
      if (here && there) differences(one[key], other[key], path, found);
      else found.push({ path, kind: there ? "added" : "removed", one: one[key], other: other[key] });
    }
  } else {
    found.push({ path: at || "(all of it)", kind: "changed", one, other });
  }
  return found;
}

/** @param {{one: any, other: any}} props */
export function Diff({ one, other }) {
  const found = differences(one, other);
  if (!found.length) return html`<p class="muted">They are alike.</p>`;
  return html`<ul class="diff">${found.map(({ path, kind, one, other }) => html`<li key=${path} data-kind=${kind}>
    <span class="diff-path mono"><bdi>${brief(path, 200)}</bdi></span>
    <span class="diff-values">${kind !== "added" && html`<del><bdi>${brief(JSON.stringify(one), 400)}</bdi></del>`}${kind !== "removed" && html`<ins><bdi>${brief(JSON.stringify(other), 400)}</bdi></ins>`}</span>
  </li>`)}</ul>${found.length >= 500 && html`<p class="muted">… and more.</p>`}`;
}

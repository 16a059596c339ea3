// The states of a run: every version of every stream, and in what any two differ.

import { change, html, useState } from "./core.js";
import { get, path } from "./api.js";
import { brief, count, moment } from "./format.js";
import { Button, Diff, Empty, Facts, Json, Loaded, Text, useRead } from "./ui.js";

export function States({ data, events, query, file }) {
  const newest = events.reduce((/** @type {number} */ last, event) => (/^(state|snapshot)\./.test(event.type) ? event.seq : last), 0);
  const read = useRead(() => (file ? Promise.resolve({ stateVersions: file.versions, next: null }) : get(path`runs/${data.run.runId}/state/versions`, { limit: 200 })), [data.run.runId, newest]);
  return html`<${Loaded} of=${read}>${(page) => html`<${Shown} page=${page} run=${data.run} query=${query} />`}<//>`;
}

function Shown({ page, run, query }) {
  const [older, more] = useState(null);
  const [busy, work] = useState(false);
  const all = [...(older?.versions ?? []), ...page.stateVersions];
  if (!all.length) return html`<${Empty} title="No state" text="What run.state.set writes shows here, with every version of it." />`;
  const streams = [...new Map(all.map((version) => [version.streamId, nameOf(version.streamId, run.runId)])).entries()];
  const main = streams.find(([, name]) => name === "main") ?? streams[0];
  const stream = streams.some(([id]) => id === query.stream) ? query.stream : main[0];
  const versions = [...new Map(all.filter((version) => version.streamId === stream).map((version) => [version.version, version])).values()].sort((a, b) => a.version - b.version);
  const last = versions.length - 1;
  const wanted = versions.findIndex((version) => String(version.version) === query.v);
  const n = wanted < 0 ? last : wanted;
  const against = versions.findIndex((version) => String(version.version) === query.with);
  const m = against < 0 ? Math.max(n - 1, 0) : against;
  const shown = versions[n], other = versions[m];
  const next = older ? older.next : page.next;
  const set = (/** @type {number} */ at) => change({ v: at === last ? "" : versions[at].version });
  return html`<div class="state">
    <div class="filter-row">
      <select aria-label="Stream" value=${stream} onChange=${(event) => change({ stream: event.currentTarget.value, v: "", with: "" })}>${streams.map(([id, name]) => html`<option key=${id} value=${id} selected=${id === stream}>${brief(name, 80)}</option>`)}</select>
      <${Button} aria-label="One version back" disabled=${n === 0} onClick=${() => set(n - 1)}>‹<//>
      <input type="range" class="slider" aria-label="Version" aria-valuetext=${`version ${shown.version}`} min="0" max=${last} value=${n} disabled=${last === 0} onInput=${(event) => set(Number(event.currentTarget.value))} />
      <${Button} aria-label="One version on" disabled=${n === last} onClick=${() => set(n + 1)}>›<//>
      <span class="num version-number">${shown.version} of ${versions[last].version}</span>
      ${next && html`<${Button} kind="small" busy=${busy} onClick=${async () => { work(true); try { const back = await get(path`runs/${run.runId}/state/versions` + next.replace(/^[^?]*/, "")); more({ versions: [...back.stateVersions, ...(older?.versions ?? [])], next: back.next }); } finally { work(false); } }}>Older<//>`}
    </div>
    <${Facts} items=${[["label", shown.label && html`<strong><${Text} text=${shown.label} /></strong>`], ["reason", shown.reason && html`<${Text} text=${shown.reason} />`], ["importance", shown.importance !== "normal" && shown.importance], ["written", html`<time datetime=${shown.createdAt}>${moment(shown.createdAt)}</time>`], ["by", shown.createdBy && html`<${Text} text=${shown.createdBy} />`]]} />
    <div class="columns">
      <section><h2>Version ${count(shown.version)}</h2><${Json} value=${shown.value} open=${3} /></section>
      <section><h2>What changed since <select class="inline" aria-label="Compare with version" value=${String(other.version)} onChange=${(event) => change({ with: event.currentTarget.value })}>${versions.map((version) => html`<option key=${version.version} value=${String(version.version)} selected=${version === other}>${version.version}${version.label ? ` · ${brief(version.label, 30)}` : ""}</option>`)}</select></h2>
        ${n === m ? html`<p class="muted">${n === 0 ? "It is the first one." : "It is the same version."}</p>` : html`<${Diff} one=${other.value} other=${shown.value} />`}</section>
    </div>
  </div>`;
}

/** @param {string} id @param {string} runId */
function nameOf(id, runId) {
  const code = id.slice(runId.length + 1).replace(/^stream_/, "");
  try {
    return new TextDecoder().decode(Uint8Array.from(atob(code.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0))).replace(/^snapshot:(.*)$/s, (_, target) => { const [kind, of] = JSON.parse(target); return `snapshots of ${kind} ${of}`; });
  } catch {
    return id;
  }
}

// Two runs side by side: a run and its fork, the good one and the bad one. In what they differ the database says.

import { go, html, link, useState } from "./core.js";
import { get, path } from "./api.js";
import { brief, count, duration, money, times } from "./format.js";
import { Ago, Diff, Empty, Facts, Json, Loaded, Status, Text, useRead, useTitle } from "./ui.js";

const SAID = /** @type {Record<string, string>} */ ({ missing: "only on the left", added: "only on the right", input: "begun with another input", value: "another value" });

/** @param {{left: string, right: string}} props */
export function Compare({ left, right }) {
  useTitle("Compare");
  const [a, setA] = useState(left), [b, setB] = useState(right);
  const read = useRead(async () => {
    if (!left || !right) return { empty: true };
    const [one, other, found] = await Promise.all([get(path`overview/runs/${left}`), get(path`overview/runs/${right}`), get(path`overview/runs/${left}/differences`, { other: right })]);
    return { one, other, differences: found.differences };
  }, [left, right]);
  const submit = (/** @type {Event} */ event) => { event.preventDefault(); go(["compare"], { left: a.trim(), right: b.trim() }); };
  return html`<section class="page" aria-labelledby="page-title"><header class="page-head"><h1 id="page-title">Compare</h1></header>
    <form class="filter-row" onSubmit=${submit}><input class="mono" aria-label="Left run" placeholder="id of a run" value=${a} dir="auto" onInput=${(event) => setA(event.currentTarget.value)} /><input class="mono" aria-label="Right run" placeholder="id of another" value=${b} dir="auto" onInput=${(event) => setB(event.currentTarget.value)} /><button type="submit" class="button primary">Compare</button></form>
    <${Loaded} of=${read}>${(found) => (found.empty ? html`<${Empty} title="Two runs" text="Give the ids of two runs, or pick two in the list." />` : html`
      <div class="columns even">${[found.one, found.other].map(({ run, totals, forkedFrom }) => html`<section class="card"><h2 class="mono"><a href=${link(["runs", run.runId])}><${Text} text=${run.runId} most=${60} /></a></h2><p><${Status} status=${run.status} lapsed=${run.leaseLapsed} /> <${Text} text=${run.workflow} most=${60} /></p>
        <${Facts} items=${[["created", html`<${Ago} at=${run.createdAt} />`], ["took", run.finishedAt && duration(Date.parse(run.finishedAt) - Date.parse(run.createdAt))], ["attempts", run.attempt], ["steps", count(run.stepsCompleted)], ["cost", totals.treeRecords > 0 && money(totals.treeCostUsd)], ["fork of", forkedFrom && html`<${Text} text=${forkedFrom} most=${40} />`]]} /></section>`)}</div>
      <h2>${found.differences.length ? times(found.differences.length, "difference") : "They are alike"}</h2>
      <ol class="compared">${found.differences.map((one, /** @type {number} */ n) => html`<${Difference} key=${n} one=${one} first=${n === found.differences.findIndex((any) => any.kind === "step" || any.kind === "state")} />`)}</ol>`)}<//>
  </section>`;
}

function Difference({ one, first }) {
  const [opened, set] = useState(false);
  const both = one.value !== null && one.other !== null;
  return html`<li><details onToggle=${(event) => set(event.currentTarget.open)} open=${opened}>
    <summary><span class="tag">${one.kind}</span> ${one.name !== null && html`<strong><${Text} text=${one.name} most=${100} /></strong>`} <span class="muted">${SAID[one.difference] ?? one.difference}</span>${first && html` <span class="tag accent">here they part</span>`}<span class="both mono muted"><bdi>${brief(one.value, 60) || "–"}</bdi> → <bdi>${brief(one.other, 60) || "–"}</bdi></span></summary>
    ${opened && html`${both && html`<${Diff} one=${one.value} other=${one.other} />`}<div class="columns even"><section><h3>Left</h3><${Json} value=${one.value} open=${1} /></section><section><h3>Right</h3><${Json} value=${one.other} open=${1} /></section></div>`}
  </details></li>`;
}

// What waits for a person: gates, those nearest to their deadline first, and steps of which nobody knows whether they took
// effect. The title of the document counts them; the browser tells of new ones where that was allowed.

import { go, html, remember, remembered, signal, useEffect, useState, useValue } from "./core.js";
import { get, me } from "./api.js";
import { brief, times } from "./format.js";
import { Gate, Review } from "./actions.js";
import { Button, Empty, Reading, titleCount, Trouble, useTitle } from "./ui.js";

const EVERY = 4000, PAGE = 50;

/** What waits: `{gates, reviews, next}`; and what went wrong when it was read. */
export const inbox = signal(/** @type {any} */ (null));
const trouble = signal(/** @type {any} */ (null));
const asks = signal(remembered("notify", false));
let pages = 1, running = false;
/** @type {Set<string> | null} */
let known = null;

export async function readInbox() {
  try {
    const all = await get("overview/inbox", { limit: PAGE });
    for (let n = 1; n < pages && all.next; n++) {
      const more = await get("overview/inbox", { limit: PAGE, ...all.next });
      all.gates.push(...more.gates);
      all.next = more.next;
    }
    inbox.value = all;
    trouble.value = null;
    notify(all);
    titleCount(all.gates.length + all.reviews.length);
  } catch (error) {
    trouble.value = error;
  }
}

function notify(all) {
  const now = new Set([...all.gates.map((gate) => `${gate.runId} ${gate.id}`), ...all.reviews.map((review) => `${review.runId} ${review.id} ${review.attempt}`)]);
  const fresh = known ? [...now].filter((key) => !known?.has(key)) : [];
  known = now;
  if (!fresh.length || !asks.value || !document.hidden || !("Notification" in window) || Notification.permission !== "granted") return;
  const first = all.gates.find((gate) => fresh.includes(`${gate.runId} ${gate.id}`));
  const note = new Notification(fresh.length === 1 ? "Somebody is asked" : `${fresh.length} wait for a person`, { body: brief(first?.prompt ?? first?.name ?? "A step may have taken effect.", 120), tag: "tidebase-inbox" });
  note.onclick = () => { window.focus(); go(["inbox"]); note.close(); };
}

/** Looks again and again, for as long as somebody is signed in. */
export function watchInbox() {
  if (running) return;
  running = true;
  const look = async () => {
    if (me.value) await readInbox();
    setTimeout(look, document.hidden ? 3 * EVERY : EVERY);
  };
  look();
  me.subscribe(() => { if (me.value === null) { inbox.value = null; titleCount(0); } });
}

export function Inbox() {
  const all = useValue(inbox), error = useValue(trouble), wants = useValue(asks);
  const [only, choose] = useState("");
  useTitle("Inbox");
  useEffect(() => { readInbox(); return () => { pages = 1; }; }, []);
  useEffect(() => {
    const keys = (event) => {
      if (event.detail !== "j" && event.detail !== "k") return;
      const cards = [...document.querySelectorAll(".ask")];
      const n = cards.findIndex((card) => card.contains(document.activeElement));
      const next = cards[Math.max(0, Math.min(n + (event.detail === "j" ? 1 : -1), cards.length - 1))];
      const focus = /** @type {HTMLElement | null} */ (next?.querySelector("input, button, a, summary"));
      focus?.focus();
      next?.scrollIntoView({ block: "nearest" });
    };
    addEventListener("studio-key", keys);
    return () => removeEventListener("studio-key", keys);
  });
  const can = "Notification" in window && Notification.permission !== "denied";
  const number = all ? all.gates.length + all.reviews.length : 0;
  return html`<section class="page inbox" aria-labelledby="page-title">
    <header class="page-head"><h1 id="page-title">Inbox</h1>
      <div class="live-bar">
        ${all && number > 0 && html`<div class="segments" role="radiogroup" aria-label="What is shown">${[["", `all ${number}${all.next ? "+" : ""}`], ["gates", `gates ${all.gates.length}`], ["reviews", `reviews ${all.reviews.length}`]].map(([key, name]) => html`<label key=${key}><input type="radio" name="only" checked=${only === key} onChange=${() => choose(key)} /> <span class="num">${name}</span></label>`)}</div>`}
        ${can && html`<${Button} aria-pressed=${wants ? "true" : "false"} onClick=${async () => { const on = !wants && (await Notification.requestPermission()) === "granted"; asks.value = on; remember("notify", on); }}>${wants ? "Notifying" : "Notify me"}<//>`}
      </div></header>
    ${error && html`<${Trouble} error=${error} again=${readInbox} />`}
    ${!all && !error && html`<${Reading} />`}
    ${all && !number && html`<${Empty} title="Nothing waits for a person" text="Gates that agents open, and steps that may have taken effect, show here: those nearest to their deadline first." />`}
    ${all && only !== "gates" && all.reviews.length > 0 && html`<h2>${times(all.reviews.length, "step")} in review</h2>${all.reviews.map((review) => html`<${Review} key=${`${review.runId} ${review.id} ${review.attempt}`} review=${review} runLink done=${readInbox} />`)}`}
    ${all && only !== "reviews" && all.gates.length > 0 && html`<h2>${times(all.gates.length, "gate")}</h2>${all.gates.map((gate) => html`<${Gate} key=${`${gate.runId} ${gate.id}`} gate=${gate} runLink done=${readInbox} />`)}`}
    ${all?.next && html`<${Button} onClick=${() => { pages += 1; readInbox(); }}>More<//>`}
  </section>`;
}

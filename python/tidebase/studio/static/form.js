// A form of a JSON Schema: what people are asked in gates. What it has no field for is written as JSON; the database's
// client checks the answer by the whole schema.

import { html, useEffect, useState } from "./core.js";
import { parsed, visible } from "./format.js";
import { Button, Choice, Field, TextField } from "./ui.js";

/** @param {any} schema */
const kindOf = (schema) => (Array.isArray(schema?.type) ? schema.type.find((/** @type {string} */ type) => type !== "null") : schema?.type);

/** @param {any} schema */
const simple = (schema) => schema && typeof schema === "object" && !schema.$ref && !schema.oneOf && !schema.anyOf && !schema.allOf
  && (Array.isArray(schema.enum) || "const" in schema || ["string", "number", "integer", "boolean"].includes(kindOf(schema))
    || (kindOf(schema) === "object" && schema.properties) || (kindOf(schema) === "array" && schema.items && !Array.isArray(schema.items)));

/**
 * What was typed as a value, with what is wrong with it.
 * @param {any} schema @param {any} draft @param {string} name @param {boolean} [required]
 * @returns {{value: any, problems: string[]}}
 */
export function valueOf(schema, draft, name, required = true) {
  const called = visible(schema?.title ?? (name || "the answer"));
  const missing = { value: undefined, problems: required ? [`${called} is needed.`] : [] };
  if (!simple(schema)) {
    if (draft === undefined || draft === "") return missing;
    const { value, error } = parsed(draft);
    return { value, problems: error ? [`${called}: ${error}`] : [] };
  }
  if ("const" in schema) return { value: schema.const, problems: [] };
  if (schema.enum) return draft === undefined || draft === "" ? missing : { value: schema.enum[Number(draft)], problems: [] };
  switch (kindOf(schema)) {
    case "boolean":
      return { value: Boolean(draft), problems: [] };
    case "string": {
      if (!draft && !(required && schema.minLength === 0)) return missing;
      const problems = [];
      if (schema.minLength && [...draft].length < schema.minLength) problems.push(`${called} needs ${schema.minLength} characters.`);
      if (schema.maxLength !== undefined && [...draft].length > schema.maxLength) problems.push(`${called} may have ${schema.maxLength} characters.`);
      try { if (schema.pattern && !new RegExp(schema.pattern, "u").test(draft)) problems.push(`${called} must be like ${visible(schema.pattern)}.`); } catch { /* of another dialect: the client checks it */ }
      return { value: draft, problems };
    }
    case "number": case "integer": {
      if (draft === undefined || draft === "") return missing;
      const number = Number(draft);
      if (!Number.isFinite(number) || (kindOf(schema) === "integer" && !Number.isInteger(number))) return { value: undefined, problems: [`${called} must be ${kindOf(schema) === "integer" ? "a whole number" : "a number"}.`] };
      const problems = [];
      if (schema.minimum !== undefined && number < schema.minimum) problems.push(`${called} must be ${schema.minimum} at least.`);
      if (schema.maximum !== undefined && number > schema.maximum) problems.push(`${called} must be ${schema.maximum} at most.`);
      if (schema.exclusiveMinimum !== undefined && number <= schema.exclusiveMinimum) problems.push(`${called} must be more than ${schema.exclusiveMinimum}.`);
      if (schema.exclusiveMaximum !== undefined && number >= schema.exclusiveMaximum) problems.push(`${called} must be less than ${schema.exclusiveMaximum}.`);
      return { value: number, problems };
    }
    case "array": {
      const items = (draft ?? []).map((/** @type {any} */ item) => valueOf(schema.items, item, called));
      if (!items.length && !required) return { value: undefined, problems: [] };
      const problems = items.flatMap((/** @type {any} */ item) => item.problems);
      if (schema.minItems && items.length < schema.minItems) problems.push(`${called}: ${schema.minItems} at least.`);
      return { value: items.map((/** @type {any} */ item) => item.value), problems };
    }
    default: {
      const needed = schema.required ?? [];
      const parts = Object.entries(schema.properties).map(/** @returns {[string, {value: any, problems: string[]}]} */ ([key, inner]) => [key, valueOf(inner, draft?.[key], key, needed.includes(key))]);
      const given = parts.filter(([, part]) => part.value !== undefined);
      return { value: given.length || required ? Object.fromEntries(given.map(([key, part]) => [key, part.value])) : undefined, problems: required || given.length ? parts.flatMap(([, part]) => part.problems) : [] };
    }
  }
}

/** What stands in the fields for a value. @param {any} schema @param {any} value @returns {any} */
export function draftOf(schema, value) {
  if (value === undefined) value = schema?.default;
  if (!simple(schema)) return value === undefined ? "" : JSON.stringify(value, null, 2);
  if (schema.enum) { const n = schema.enum.findIndex((/** @type {any} */ one) => JSON.stringify(one) === JSON.stringify(value)); return n < 0 ? "" : String(n); }
  switch (kindOf(schema)) {
    case "object": return Object.fromEntries(Object.entries(schema.properties).map(([key, inner]) => [key, draftOf(inner, value?.[key])]));
    case "array": return Array.isArray(value) ? value.map((item) => draftOf(schema.items, item)) : [];
    case "boolean": return Boolean(value);
    default: return value === undefined || value === null ? "" : String(value);
  }
}

/** What is needed first, in the order in which it is said to be needed: the database keeps no other. @param {any} schema */
function ordered(schema) {
  const needed = (schema.required ?? []).filter((/** @type {string} */ key) => Object.hasOwn(schema.properties, key));
  return [...needed, ...Object.keys(schema.properties).filter((key) => !needed.includes(key))].map((key) => [key, schema.properties[key]]);
}

/** @param {{schema: any, start?: any, onChange: (answer: {value: any, problems: string[]}) => void}} props */
export function Form({ schema, start, onChange }) {
  const [draft, set] = useState(() => draftOf(schema, start));
  useEffect(() => onChange(valueOf(schema, draft, "")), [draft]);
  return html`<div class="schema-form">
    ${schema.title && html`<p class="form-title">${visible(schema.title)}</p>`}${schema.description && html`<p class="hint">${visible(schema.description)}</p>`}
    <${Part} schema=${schema} draft=${draft} onDraft=${set} name="" required />
  </div>`;
}

/** @param {any} props */
function Part({ schema, draft, onDraft, name, required }) {
  const label = `${visible(schema?.title ?? (name || "Answer"))}${required ? "" : " (optional)"}`;
  const hint = schema?.description && name ? visible(schema.description) : null;
  if (!simple(schema)) return html`<${TextField} label=${`${label}, as JSON`} area mono value=${draft ?? ""} onInput=${onDraft} hint=${hint} />`;
  if ("const" in schema) return null;
  if (schema.enum) return html`<${Choice} label=${label} hint=${hint} value=${draft ?? ""} onChange=${onDraft} options=${[["", "–"], ...schema.enum.map((/** @type {any} */ one, /** @type {number} */ n) => [String(n), visible(typeof one === "string" ? one : JSON.stringify(one))])]} />`;
  switch (kindOf(schema)) {
    case "boolean": return html`<div class="field"><label class="check"><input type="checkbox" checked=${Boolean(draft)} onChange=${(/** @type {any} */ event) => onDraft(event.currentTarget.checked)} /> ${label}</label>${hint && html`<p class="hint">${hint}</p>`}</div>`;
    case "object": {
      const needed = schema.required ?? [];
      const parts = ordered(schema).map(([key, inner]) => html`<${Part} key=${key} schema=${inner} name=${key} required=${needed.includes(key)} draft=${draft?.[key]} onDraft=${(/** @type {any} */ value) => onDraft({ ...draft, [key]: value })} />`);
      return name ? html`<fieldset class="nested"><legend>${label}</legend>${parts}</fieldset>` : html`${parts}`;
    }
    case "array": return html`<fieldset class="nested"><legend>${label}</legend>
      ${(draft ?? []).map((/** @type {any} */ item, /** @type {number} */ n) => html`<div class="item" key=${n}><${Part} schema=${schema.items} name=${`${n + 1}`} required draft=${item} onDraft=${(/** @type {any} */ value) => onDraft(draft.map((/** @type {any} */ old, /** @type {number} */ at) => (at === n ? value : old)))} /><${Button} kind="small" aria-label=${`Remove ${n + 1}`} onClick=${() => onDraft(draft.filter((/** @type {any} */ _, /** @type {number} */ at) => at !== n))}>Remove<//></div>`)}
      <${Button} kind="small" onClick=${() => onDraft([...(draft ?? []), draftOf(schema.items, undefined)])}>Add<//>
    </fieldset>`;
    case "number": case "integer": return html`<${TextField} label=${label} hint=${hint ?? limits(schema)} value=${draft ?? ""} onInput=${onDraft} inputmode="decimal" />`;
    default: return html`<${TextField} label=${label} hint=${hint} value=${draft ?? ""} onInput=${onDraft} area=${(schema.maxLength ?? 0) > 200 || schema.format === "multiline"} />`;
  }
}

/** @param {any} schema */
function limits({ minimum, maximum }) {
  if (minimum !== undefined && maximum !== undefined) return `From ${minimum} to ${maximum}.`;
  return minimum !== undefined ? `${minimum} at least.` : maximum !== undefined ? `${maximum} at most.` : null;
}

export { Field };

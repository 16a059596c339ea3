// A form of a JSON Schema (Draft 2020-12): what people are asked in gates. What it has no fields for is written as JSON, and
// nothing is left out; either is checked before it is sent. What this does not know of the standard it does not forbid: the
// run's client checks the answer again, by all of it.

import { html, useEffect, useState } from "./core.js";
import { parsed, visible } from "./format.js";
import { Button, Choice, TextField } from "./ui.js";

export const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** @param {string} key */
export const own = (object, key) => (isObject(object) && Object.hasOwn(object, key) ? object[key] : undefined);

/** The type of a value, in the words of the standard. */
function typeOf(value) {
  if (value === null) return "null";
  if (Array.isArray(value)) return "array";
  return typeof value;
}

/** What a reference leads to in the document; undefined: it is another one's, or nothing. @param {string} ref */
function target(root, ref) {
  if (ref === "#") return root;
  if (!ref.startsWith("#/")) return undefined;
  let found = root;
  for (const part of ref.slice(2).split("/")) {
    let key = part;
    try { key = decodeURIComponent(part); } catch { /* no percent-encoding */ }
    key = key.replaceAll("~1", "/").replaceAll("~0", "~");
    if (found === null || typeof found !== "object" || !Object.hasOwn(found, key)) return undefined;
    found = found[key];
  }
  return found;
}

const NOTES = ["title", "description", "default", "examples", "deprecated", "$comment", "$defs", "definitions", "$schema", "$id"];

/** All of them as one, where nothing is said twice. */
function merged(schema, root, refs) {
  const { allOf, ...all } = schema;
  for (const part of allOf) {
    const one = resolved(part, root, refs)?.schema;
    if (!isObject(one)) return null;
    for (const [key, value] of Object.entries(one)) {
      if (key === "properties" && isObject(all.properties)) {
        if (Object.keys(value).some((name) => Object.hasOwn(all.properties, name))) return null;
        all.properties = { ...all.properties, ...value };
      } else if (key === "required" && Array.isArray(all.required)) all.required = [...new Set([...all.required, ...value])];
      else if (!Object.hasOwn(all, key) || NOTES.includes(key)) all[key] = Object.hasOwn(all, key) ? all[key] : value;
      else if (JSON.stringify(all[key]) !== JSON.stringify(value)) return null;
    }
  }
  return all;
}

/**
 * A schema with what its references lead to. Null: it leads out of the document, or in a circle, or cannot be said as one.
 * @param {string[]} [refs] those that led here
 * @returns {{schema: any, refs: string[]} | null}
 */
export function resolved(schema, root, refs = []) {
  for (;;) {
    if (!isObject(schema)) return schema === true ? { schema: {}, refs } : null;
    if (typeof schema.$ref === "string") {
      if (refs.includes(schema.$ref) || refs.length > 8) return null;
      const { $ref, ...rest } = schema, found = target(root, $ref);
      refs = [...refs, $ref];
      if (found === undefined || typeof found === "boolean") { if (found !== true) return null; schema = rest; } else schema = { ...found, ...rest };
    } else if (Array.isArray(schema.allOf)) {
      const one = merged(schema, root, refs);
      if (!one) return null;
      schema = one;
    } else return { schema, refs };
  }
}

// What cannot be asked for field by field: which fields there are depends on what is said, or there are none.
const BEYOND = ["if", "then", "else", "dependentSchemas", "dependencies", "$dynamicRef", "$recursiveRef", "prefixItems"];

/**
 * How a schema is asked for.
 * @param {string[]} [refs]
 * @returns {{kind: string, schema: any, refs: string[], nullable?: boolean, variants?: any[]}}
 */
function asked(given, root, refs = []) {
  const found = resolved(given, root, refs);
  const json = { kind: "json", schema: isObject(given) ? given : {}, refs };
  if (!found) return json;
  const { schema } = found;
  refs = found.refs;
  json.schema = schema;
  json.refs = refs;
  if (BEYOND.some((word) => Object.hasOwn(schema, word))) return json;
  if (Object.hasOwn(schema, "const")) return { kind: "const", schema, refs };
  if (Array.isArray(schema.enum)) return { kind: "enum", schema, refs };
  const several = Array.isArray(schema.anyOf) ? "anyOf" : Array.isArray(schema.oneOf) ? "oneOf" : null;
  if (several) {
    const { [several]: list, ...rest } = schema;
    if (Object.keys(rest).some((word) => !NOTES.includes(word) && word !== "type" && word !== "discriminator") || !list.length || list.length > 20) return json;
    return choice(list, rest, root, refs);
  }
  if (Array.isArray(schema.type)) {
    const { type, ...rest } = schema;
    return choice(type.map((/** @type {string} */ one) => ({ ...rest, type: one })), rest, root, refs);
  }
  const type = schema.type ?? (isObject(schema.properties) ? "object" : isObject(schema.items) ? "array" : undefined);
  switch (type) {
    case "null": return { kind: "const", schema: { ...schema, const: null }, refs };
    case "string": case "number": case "integer": case "boolean": return { kind: type, schema, refs };
    case "array": return isObject(schema.items) || schema.items === true ? { kind: "array", schema, refs } : json;
    case "object": return isObject(schema.properties) || schema.additionalProperties === false ? { kind: "object", schema, refs } : json;
    default: return json;
  }
}

/** One of several; where the others are null, that one with nothing in it. @param {any[]} list @param {string[]} refs */
function choice(list, notes, root, refs) {
  const something = list.filter((one) => own(resolved(one, root, refs)?.schema, "type") !== "null");
  const words = Object.fromEntries(Object.entries(notes).filter(([word]) => ["title", "description", "default"].includes(word)));
  if (something.length === 1) {
    const only = asked({ ...(isObject(something[0]) ? something[0] : {}), ...words }, root, refs);
    if (something.length === list.length) return only;
    if (["string", "number", "integer", "boolean", "enum"].includes(only.kind)) return { ...only, nullable: true };
  }
  return { kind: "variants", schema: words, variants: list, refs };
}

/** What needs no more words, as one: for what is the same and for what is unique. @returns {string} */
function canonical(value) {
  return JSON.stringify(value, (_, inner) => (isObject(inner) ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1))) : inner));
}

const named = (schema, /** @type {string} */ name) => visible(own(schema, "title") ?? (name || "The answer"));

/**
 * What is wrong with a value, in words; at most some of it.
 * @param {any} [root] @param {string} [name]
 * @returns {string[]}
 */
export function faults(schema, value, root = schema, name = "") {
  const left = { steps: 20_000 };
  return look(schema, value, root, name, left, 0).slice(0, 20);
}

/** @param {string} name @param {{steps: number}} left @param {number} depth @returns {string[]} */
function look(schema, value, root, name, left, depth) {
  if (schema === false) return [`${name || "The answer"} may not be there.`];
  if (!isObject(schema) || depth > 60 || --left.steps < 0) return [];
  const called = named(schema, name);
  const found = /** @type {string[]} */ ([]);
  const say = (/** @type {string} */ text) => { found.push(`${called} ${text}`); };
  const inside = (inner, of, /** @type {string} */ as) => look(inner, of, root, as, left, depth + 1);
  const fits = (inner) => inside(inner, value, called).length === 0;
  const type = typeOf(value);
  if (typeof schema.$ref === "string") {
    const to = target(root, schema.$ref);
    if (to !== undefined) found.push(...inside(isObject(to) && own(schema, "title") ? { ...to, title: schema.title } : to, value, name));
  }
  const types = schema.type === undefined ? [] : [schema.type].flat();
  if (types.length && !types.some((one) => one === type || (one === "integer" && Number.isInteger(value)))) {
    say(`must be ${types.map((one) => A[one] ?? one).join(" or ")}.`);
    return found;
  }
  if (Array.isArray(schema.enum) && !schema.enum.some((one) => canonical(one) === canonical(value))) say("must be one of those that are offered.");
  if (Object.hasOwn(schema, "const") && canonical(schema.const) !== canonical(value)) say(`must be ${visible(JSON.stringify(schema.const))}.`);
  if (type === "number") {
    if (value < schema.minimum) say(`must be ${schema.minimum} at least.`);
    if (value > schema.maximum) say(`must be ${schema.maximum} at most.`);
    if (value <= schema.exclusiveMinimum) say(`must be more than ${schema.exclusiveMinimum}.`);
    if (value >= schema.exclusiveMaximum) say(`must be less than ${schema.exclusiveMaximum}.`);
    if (schema.multipleOf > 0 && !isMultiple(value, schema.multipleOf)) say(`must be a multiple of ${schema.multipleOf}.`);
  } else if (type === "string") {
    const length = [...value].length;
    if (length < schema.minLength) say(`needs ${schema.minLength} characters.`);
    if (length > schema.maxLength) say(`may have ${schema.maxLength} characters.`);
    if (typeof schema.pattern === "string" && length <= 2000 && !matches(schema.pattern, value)) say(`must be like ${visible(schema.pattern)}.`);
  } else if (type === "array") {
    if (value.length < schema.minItems) say(`needs ${schema.minItems} at least.`);
    if (value.length > schema.maxItems) say(`may have ${schema.maxItems} at most.`);
    if (schema.uniqueItems === true && new Set(value.map(canonical)).size < value.length) say("may have nothing twice.");
    const first = Array.isArray(schema.prefixItems) ? schema.prefixItems : Array.isArray(schema.items) ? schema.items : [];
    const rest = Array.isArray(schema.items) ? schema.additionalItems : schema.items;
    value.forEach((item, /** @type {number} */ n) => {
      const inner = n < first.length ? first[n] : rest;
      if (inner !== undefined && found.length < 20) found.push(...inside(inner, item, `${called} ${n + 1}`));
    });
  } else if (type === "object") {
    const properties = isObject(schema.properties) ? schema.properties : {};
    for (const key of Array.isArray(schema.required) ? schema.required : []) if (!Object.hasOwn(value, key)) found.push(`${named(resolved(own(properties, key), root)?.schema, key)} is needed.`);
    for (const key of Object.keys(value)) {
      if (found.length >= 20) break;
      let known = false;
      if (Object.hasOwn(properties, key)) { known = true; found.push(...inside(properties[key], value[key], key)); }
      for (const [pattern, inner] of Object.entries(isObject(schema.patternProperties) ? schema.patternProperties : {})) if (matches(pattern, key)) { known = true; found.push(...inside(inner, value[key], key)); }
      if (!known && schema.additionalProperties === false) say(`may not have ${visible(key)}.`);
      else if (!known && schema.additionalProperties !== undefined) found.push(...inside(schema.additionalProperties, value[key], key));
    }
  }
  for (const part of Array.isArray(schema.allOf) ? schema.allOf : []) found.push(...inside(part, value, name));
  if (Array.isArray(schema.anyOf) && !schema.anyOf.some(fits)) found.push(...nearest(schema.anyOf.map((one) => inside(one, value, called))));
  if (Array.isArray(schema.oneOf)) {
    const all = schema.oneOf.map((one) => inside(one, value, called));
    const number = all.filter((/** @type {string[]} */ one) => !one.length).length;
    if (number === 0) found.push(...nearest(all));
    if (number > 1) say("may be only one of what it can be, and is several.");
  }
  if (schema.not !== undefined && fits(schema.not)) say("may not be this.");
  if (schema.if !== undefined) {
    const then = fits(schema.if) ? schema.then : schema.else;
    if (then !== undefined) found.push(...inside(then, value, name));
  }
  return left.steps < 0 ? [] : found;  // too much to be looked at here
}

/** Of several ways to be wrong, the least. @param {string[][]} all */
const nearest = (all) => [...all].sort((a, b) => a.length - b.length)[0] ?? [];

const A = /** @type {Record<string, string>} */ ({ string: "a text", number: "a number", integer: "a whole number", boolean: "yes or no", array: "a list", object: "an object", null: "nothing (null)" });

/** @param {number} value @param {number} of */
function isMultiple(value, of) {
  const number = value / of;
  return Math.abs(number - Math.round(number)) < 1e-9 * Math.max(1, Math.abs(number));
}

/** Patterns of another dialect are left to the client. @param {string} pattern @param {string} text */
function matches(pattern, text) {
  try { return new RegExp(pattern, "u").test(text); } catch { return true; }
}

// -- the form

/** @typedef {{value: any, problems: string[]}} Answer */

const MANY = 200, DEEP = 6;

/** How a part is asked for; what lies too deep is written as JSON. @param {string[]} refs @param {number} depth */
const at = (schema, root, refs, depth) => { const found = asked(schema, root, refs); return depth > DEEP ? { ...found, kind: "json" } : found; };

/** How many fields there would be, or so. @param {string[]} [refs] @param {number} [depth] @returns {number} */
function fields(schema, root, refs = [], depth = 0) {
  const part = at(schema, root, refs, depth);
  const inner = part.kind === "object" ? Object.values(part.schema.properties ?? {}) : part.kind === "array" ? [part.schema.items] : part.kind === "variants" ? part.variants ?? [] : [];
  let number = 1;
  for (const one of inner) if (number <= MANY) number += fields(one, root, part.refs, depth + 1);
  return number;
}

const label = (part, /** @type {string} */ name) => visible(part.schema.title ?? (name || "Answer"));
const withOthers = (schema) => isObject(schema.additionalProperties) || schema.additionalProperties === true || isObject(schema.patternProperties);

/** What stands in the fields for a value. @param {string[]} [refs] @param {number} [depth] @returns {any} */
export function draftOf(given, value, root, refs = [], depth = 0) {
  const part = at(given, root, refs, depth), { schema } = part;
  if (value === undefined) value = schema.default;
  switch (part.kind) {
    case "const": return null;
    case "enum": { const n = schema.enum.findIndex((one) => JSON.stringify(one) === JSON.stringify(value)); return n < 0 ? "" : String(n); }
    case "boolean": return typeof value === "boolean" ? String(value) : "";
    case "string": case "number": case "integer":
      if (value === undefined) return "";
      return value === "" || value === null ? { was: value } : typeof value === "string" ? value : JSON.stringify(value);
    case "array": return Array.isArray(value) ? value.map((item) => draftOf(schema.items, item, root, part.refs, depth + 1)) : undefined;
    case "object": {
      const properties = schema.properties ?? {};
      const others = isObject(value) && (schema.additionalProperties !== false || isObject(schema.patternProperties)) ? Object.entries(value).filter(([key]) => !Object.hasOwn(properties, key)) : [];
      return {
        fields: new Map(Object.entries(properties).map(([key, inner]) => [key, draftOf(inner, own(value, key), root, part.refs, depth + 1)])),
        there: isObject(value),
        others: others.length ? JSON.stringify(Object.fromEntries(others), null, 2) : withOthers(schema) ? "" : null,
      };
    }
    case "variants": {
      const variants = part.variants ?? [];
      const n = value === undefined ? -1 : variants.findIndex((one) => !faults(one, value, root).length);
      return { pick: n < 0 ? "" : String(n), drafts: variants.map((one, m) => (m === n ? draftOf(one, value, root, part.refs, depth + 1) : undefined)) };
    }
    default: return value === undefined ? "" : JSON.stringify(value, null, 2);
  }
}

/**
 * What was typed as a value, with what cannot be read. What is left empty is not there; undefined: nothing is.
 * @param {string} name @param {boolean} required @param {string[]} [refs] @param {number} [depth]
 * @returns {Answer}
 */
export function valueOf(given, draft, name, required, root, refs = [], depth = 0) {
  const part = at(given, root, refs, depth), { schema } = part;
  const nothing = { value: part.nullable && required ? null : undefined, problems: [] };
  if (isObject(draft) && Object.hasOwn(draft, "was")) return { value: draft.was, problems: [] };
  switch (part.kind) {
    case "const": return { value: schema.const, problems: [] };
    case "enum": return draft === "" ? nothing : { value: schema.enum[Number(draft)], problems: [] };
    case "boolean": return draft === "" ? nothing : { value: draft === "true", problems: [] };
    case "string": return draft === "" && !(required && schema.minLength === 0) ? nothing : { value: draft, problems: [] };
    case "number": case "integer": {
      if (draft.trim() === "") return nothing;
      const number = Number(draft);
      if (!Number.isFinite(number)) return { value: undefined, problems: [`${label(part, name)} must be ${part.kind === "integer" ? "a whole number" : "a number"}.`] };
      if (Math.abs(number) > Number.MAX_SAFE_INTEGER) return { value: undefined, problems: [`${label(part, name)} is too large to be sent as it is.`] };
      return { value: number, problems: [] };
    }
    case "array": {
      if (!draft) return required ? { value: [], problems: [] } : nothing;
      const items = draft.map((item, /** @type {number} */ n) => valueOf(schema.items, item, `${label(part, name)} ${n + 1}`, true, root, part.refs, depth + 1));
      const empty = items.findIndex((/** @type {Answer} */ item) => item.value === undefined && !item.problems.length);
      return { value: items.map((/** @type {Answer} */ item) => item.value), problems: [...items.flatMap((/** @type {Answer} */ item) => item.problems), ...(empty < 0 ? [] : [`${label(part, name)} ${empty + 1} is needed.`])] };
    }
    case "object": {
      const needed = schema.required ?? [];
      const parts = Object.entries(schema.properties ?? {}).map(/** @returns {[string, Answer, string]} */ ([key, inner]) => [key, valueOf(inner, draft.fields.get(key), key, needed.includes(key), root, part.refs, depth + 1), at(inner, root, part.refs, depth + 1).kind]);
      const filled = parts.filter(([, answer]) => answer.value !== undefined || answer.problems.length);
      const others = draft.others ? parsed(draft.others) : { value: {}, error: null };
      const problems = parts.flatMap(([, answer]) => answer.problems);
      if (others.error || !isObject(others.value)) problems.push(`${label(part, name)}, other fields: ${others.error ?? "it must be an object."}`);
      const twice = parts.find(([key]) => Object.hasOwn(others.value ?? {}, key));
      if (twice) problems.push(`${visible(twice[0])} has a field of its own.`);
      if (!required && !draft.there && filled.every(([, , kind]) => kind === "const") && !draft.others) return nothing;
      return { value: Object.fromEntries([...filled.map(([key, answer]) => [key, answer.value]), ...Object.entries(others.value ?? {})]), problems };
    }
    case "variants": {
      if (draft.pick === "") return nothing;
      const n = Number(draft.pick), variant = (part.variants ?? [])[n];
      return valueOf(variant, draft.drafts[n] ?? draftOf(variant, undefined, root, part.refs, depth + 1), name, true, root, part.refs, depth + 1);
    }
    default: {
      if (draft.trim() === "") return nothing;
      const { value, error } = parsed(draft);
      return { value, problems: error ? [`${label(part, name)}: ${error}`] : [] };
    }
  }
}

/** What is needed first, in the order in which it is said to be needed: the database keeps no other. @returns {[string, any][]} */
function ordered(schema) {
  const properties = schema.properties ?? {};
  const needed = (schema.required ?? []).filter((/** @type {string} */ key) => Object.hasOwn(properties, key));
  return [...needed, ...Object.keys(properties).filter((key) => !needed.includes(key))].map((key) => [key, properties[key]]);
}

/** @param {{schema: any, start?: any, onChange: (answer: Answer) => void}} props */
export function Form({ schema, start, onChange }) {
  const [draft, set] = useState(undefined);
  // Too many fields are none that anybody would fill in.
  const [form] = useState(() => (fields(schema, schema) > MANY ? { title: schema.title, description: schema.description } : schema));
  const shown = draft === undefined ? draftOf(form, start, schema) : draft;
  useEffect(() => {
    const answer = valueOf(form, shown, "", true, schema);
    onChange(answer.problems.length ? answer : { ...answer, problems: faults(schema, answer.value) });
  }, [draft]);
  return html`<div class="schema-form">
    ${own(schema, "title") && html`<p class="form-title">${visible(schema.title)}</p>`}${own(schema, "description") && html`<p class="hint">${visible(schema.description)}</p>`}
    <${Part} given=${form} root=${schema} draft=${shown} onDraft=${set} name="" required />
  </div>`;
}

function Part({ given, root, refs = [], depth = 0, draft, onDraft, name, required }) {
  const part = at(given, root, refs, depth), { schema } = part;
  const called = `${label(part, name)}${required ? "" : " (optional)"}`;
  const hint = schema.description && name ? visible(schema.description) : null;
  const inside = { root, refs: part.refs, depth: depth + 1 };
  const typed = typeof draft === "string" ? draft : "";
  switch (part.kind) {
    case "const": return null;
    case "enum": return html`<${Choice} label=${called} hint=${hint} value=${draft} onChange=${onDraft} options=${[["", "–"], ...schema.enum.map((one, /** @type {number} */ n) => [String(n), said(one)])]} />`;
    case "boolean": return required && !part.nullable && draft !== ""
      ? html`<div class="field"><label class="check"><input type="checkbox" checked=${draft === "true"} onChange=${(event) => onDraft(String(event.currentTarget.checked))} /> ${called}</label>${hint && html`<p class="hint">${hint}</p>`}</div>`
      : html`<${Choice} label=${called} hint=${hint} value=${draft} onChange=${onDraft} options=${[["", "–"], ["true", "yes"], ["false", "no"]]} />`;
    case "object": {
      const needed = schema.required ?? [];
      const parts = ordered(schema).map(([key, inner]) => html`<${Part} key=${key} ...${inside} given=${inner} name=${key} required=${needed.includes(key)} draft=${draft.fields.get(key)} onDraft=${(value) => onDraft({ ...draft, fields: new Map(draft.fields).set(key, value) })} />`);
      const others = draft.others !== null && html`<${TextField} label=${`${name ? `${label(part, name)}: other` : "Other"} fields, as JSON`} area mono rows="3" value=${draft.others} onInput=${(text) => onDraft({ ...draft, others: text })} />`;
      return name ? html`<fieldset class="nested"><legend>${called}</legend>${hint && html`<p class="hint">${hint}</p>`}${parts}${others}</fieldset>` : html`${parts}${others}`;
    }
    case "array": return html`<fieldset class="nested"><legend>${called}</legend>${hint && html`<p class="hint">${hint}</p>`}
      ${(draft ?? []).map((item, /** @type {number} */ n) => html`<div class="item" key=${n}><${Part} ...${inside} given=${schema.items} name=${`${n + 1}`} required draft=${item} onDraft=${(value) => onDraft(draft.map((old, /** @type {number} */ m) => (m === n ? value : old)))} /><${Button} kind="small" aria-label=${`Remove ${n + 1}`} onClick=${() => onDraft(draft.filter((_, /** @type {number} */ m) => m !== n))}>Remove<//></div>`)}
      <${Button} kind="small" aria-label=${`Add to ${called}`} onClick=${() => onDraft([...(draft ?? []), draftOf(schema.items, undefined, root, part.refs, depth + 1)])}>Add<//>
    </fieldset>`;
    case "variants": {
      const variants = part.variants ?? [], n = Number(draft.pick);
      return html`<fieldset class="nested"><legend>${called}</legend>
        <${Choice} label="Which" hint=${hint} value=${draft.pick} onChange=${(pick) => onDraft({ pick, drafts: draft.drafts.map((old, /** @type {number} */ m) => (String(m) === pick && old === undefined ? draftOf(variants[m], undefined, root, part.refs, depth + 1) : old)) })} options=${[["", "–"], ...variants.map((one, m) => [String(m), kindOf(one, root, part.refs, m)])]} />
        ${draft.pick !== "" && html`<${Part} key=${draft.pick} ...${inside} given=${variants[n]} name=${kindOf(variants[n], root, part.refs, n)} required draft=${draft.drafts[n]} onDraft=${(value) => onDraft({ ...draft, drafts: draft.drafts.map((old, /** @type {number} */ m) => (m === n ? value : old)) })} />`}
      </fieldset>`;
    }
    case "number": case "integer": return html`<${TextField} label=${called} hint=${hint ?? limits(schema)} value=${typed} onInput=${onDraft} inputmode="decimal" />`;
    case "string": return html`<${TextField} label=${called} hint=${hint ?? FORMATS[schema.format]} value=${typed} onInput=${onDraft} area=${(schema.maxLength ?? 0) > 200 || schema.format === "multiline"} />`;
    default: return html`<${TextField} label=${`${called}, as JSON`} area mono value=${draft} onInput=${onDraft} hint=${hint} />`;
  }
}

const FORMATS = /** @type {Record<string, string>} */ ({ date: "2026-01-31", "date-time": "2026-01-31T12:00:00Z", time: "12:00:00Z", email: "name@example.org", duration: "P1DT12H" });

const said = (one) => visible(typeof one === "string" ? one : JSON.stringify(one)).slice(0, 200);

/** What one of several is called. @param {string[]} refs @param {number} n */
function kindOf(variant, root, refs, n) {
  const schema = resolved(variant, root, refs)?.schema ?? {};
  if (schema.title) return visible(schema.title);
  if (Object.hasOwn(schema, "const")) return schema.const === null ? "nothing" : said(schema.const);
  const fixed = Object.values(isObject(schema.properties) ? schema.properties : {}).find((inner) => isObject(inner) && Object.hasOwn(inner, "const"));
  if (fixed) return said(fixed.const);
  return ({ null: "nothing", string: "a text", number: "a number", integer: "a whole number", boolean: "yes or no", array: "a list", object: "an object" })[/** @type {string} */ (schema.type)] ?? `the ${n + 1}. way`;
}

function limits({ minimum, maximum }) {
  if (minimum !== undefined && maximum !== undefined) return `From ${minimum} to ${maximum}.`;
  return minimum !== undefined ? `${minimum} at least.` : maximum !== undefined ? `${maximum} at most.` : null;
}

/** Converts values of events for a store. A value without a native form there becomes PostgreSQL's text. */

import { PROTO } from "../contract/decoding.js";
import { Raw } from "../contract/records.js";
import { baseWords, BUILTIN, DOCUMENTS, elementWords, FLOATS, INTEGERS } from "./shapes.js";

/** @typedef {(value: any) => any} Binder */

/** Nested values as JSON. Integers of any size keep their digits. @param {any} value @returns {string} */
export function documentText(value) {
  if (value instanceof Raw) return value.text;
  if (typeof value === "bigint") return String(value);
  if (typeof value === "number") return Object.is(value, -0) ? "-0.0" : String(value);
  if (Array.isArray(value)) return `[${value.map(documentText).join(",")}]`;
  if (typeof value === "object" && value !== null) {
    const members = Object.entries(value).map(([key, one]) => `${JSON.stringify(key === PROTO ? "__proto__" : key)}:${documentText(one)}`);
    return `{${members.join(",")}}`;
  }
  return JSON.stringify(value);
}

/** @param {any} value @returns {string} */
function plainText(value) {
  if (value instanceof Raw) return value.text;
  if (typeof value === "string") return value;
  if (typeof value === "boolean") return value ? "t" : "f";
  if (typeof value === "number" || typeof value === "bigint") return Object.is(value, -0) ? "-0" : String(value);
  if (value instanceof Uint8Array) return `\\x${Array.from(value, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
  return documentText(value);
}

/** @param {any} value */
function binary(value) {
  if (value instanceof Raw) return value.text;
  return typeof value === "string" ? Uint8Array.from(atob(value), (letter) => letter.charCodeAt(0)) : value;
}

/** PostgreSQL's literal of a nested list; text stays as it is. @param {any} value @param {string} words @returns {string} */
function arrayLiteral(value, words) {
  if (!Array.isArray(value)) return plainText(value);
  const base = baseWords(words);
  const isDocument = DOCUMENTS.has(base);
  const delimiter = words === "box" ? ";" : ",";
  /** @type {(one: any) => string} */
  const element = (one) => {
    if (one === null) return "NULL";
    if (Array.isArray(one) && !isDocument) return `{${one.map(element).join(delimiter)}}`;
    const text = isDocument ? documentText(one) : plainText(base === "bytea" ? binary(one) : one);
    const needsQuotes = /[{}"\\\s]|^$|^null$/i.test(text) || text.includes(delimiter);
    return needsQuotes ? `"${text.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"` : text;
  };
  return `{${value.map(element).join(delimiter)}}`;
}

/** SQLite turns NaN into NULL, so it is stored as text; JSON has NaN and infinities as text too. @param {any} value */
function float(value) {
  const number = typeof value === "number" ? value : Number(String(value).replace(/^(-?)inf(inity)?$/i, "$1Infinity"));
  return Number.isNaN(number) ? "NaN" : number;
}

/** @param {any} value */
const any = (value) =>
  value instanceof Raw ? value.text : typeof value === "object" && !(value instanceof Uint8Array) ? documentText(value) : value;

/** The column's type in SQLite; empty for unknown types, so that SQLite converts nothing. @param {string} words */
export function sqliteType(words) {
  const base = baseWords(words);
  if (INTEGERS.has(base)) return "INTEGER";
  if (FLOATS.has(base)) return "REAL";
  if (base === "boolean") return "BOOLEAN";
  if (base === "bytea") return "BLOB";
  return BUILTIN.has(base) || elementWords(base) !== null ? "TEXT" : "";
}

/** The conversion of a type's values for SQLite. @param {string} words @returns {Binder} */
export function sqliteBinder(words) {
  const base = baseWords(words);
  const element = elementWords(base);
  /** @type {Binder} */
  let convert = any;
  if (element !== null) convert = (value) => arrayLiteral(value, element);
  else if (DOCUMENTS.has(base)) convert = documentText;
  else if (FLOATS.has(base)) convert = float;
  else if (base === "bytea") convert = binary;
  else if (base === "boolean") convert = (value) => (typeof value === "boolean" ? Number(value) : any(value));
  else if (INTEGERS.has(base)) {
    convert = (value) => (value instanceof Raw || typeof value === "string" ? BigInt(String(value)) : value);
  }
  return (value) => (value === null ? null : convert(value));
}

/** The conversion of a type's values to PostgreSQL's text. @param {string} words @returns {Binder} */
export function postgresBinder(words) {
  const base = baseWords(words);
  const element = elementWords(base);
  /** @type {Binder} */
  let convert = plainText;
  if (element !== null) convert = (value) => arrayLiteral(value, element);
  else if (DOCUMENTS.has(base)) convert = documentText;
  else if (base === "bytea") convert = (value) => plainText(binary(value));
  return (value) => (value === null ? null : convert(value));
}

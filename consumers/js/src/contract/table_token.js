/** Table tokens: one NATS token per table, the same in subjects, keys and message ids. */

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** @param {string} name */
const escape = (name) =>
  Array.from(encoder.encode(name), (byte) => {
    const letter = String.fromCharCode(byte);
    return /[A-Za-z0-9_-]/.test(letter) ? letter : `=${byte.toString(16).toUpperCase().padStart(2, "0")}`;
  }).join("");

/** @param {string} part */
const unescape = (part) => {
  const bytes = part.replace(/=([0-9A-F]{2})/g, (_, hex) => String.fromCharCode(parseInt(hex, 16)));
  return decoder.decode(Uint8Array.from(bytes, (letter) => letter.charCodeAt(0)));
};

/** The token of a table: `users` for public.users, `sales/orders` for sales.orders. @param {string} schema @param {string} table */
export function tableToken(schema, table) {
  const token = schema === "public" ? escape(table) : `${escape(schema)}/${escape(table)}`;
  return token.startsWith("_") ? `=5F${token.slice(1)}` : token;
}

/** Schema and table of a token. @param {string} token @returns {[schema: string, table: string]} */
export function splitToken(token) {
  const slash = token.lastIndexOf("/");
  return slash < 0 ? ["public", unescape(token)] : [unescape(token.slice(0, slash)), unescape(token.slice(slash + 1))];
}

/**
 * Which of these tokens a table's name means: a token, `table` of schema public, or `schema.table`.
 * @param {string} name @param {Iterable<string>} tokens
 */
export function findToken(name, tokens) {
  const known = new Set(tokens);
  const candidates = [name, tableToken("public", name)];
  for (let i = name.indexOf("."); i >= 0; i = name.indexOf(".", i + 1)) {
    candidates.push(tableToken(name.slice(0, i), name.slice(i + 1)));
  }
  return candidates.find((one) => known.has(one));
}

/** A token as people write the table. @param {string} token */
export function tableName(token) {
  const [schema, table] = splitToken(token);
  return schema === "public" ? table : `${schema}.${table}`;
}

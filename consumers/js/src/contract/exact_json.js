/** Reads a json document as events have it: nested only if no reader of the nested form would see another document. */

const DEPTH_MAX = 100;
const TOKEN = /[ \t\n\r]*([[\]{}:,]|"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null)/y;

/** The nested form would not be the same document. */
class Changed extends Error {}

/**
 * The nested document, or null where it must stay text: a number that a float cannot hold, a repeated key, the document `null`,
 * nesting deeper than 100. `isJson`: the bridge's events are JSON, in which integers have 53 bits; in MessagePack they have 64.
 * @param {string} written @param {boolean} isJson @returns {unknown}
 */
export function nestedOrNull(written, isJson) {
  TOKEN.lastIndex = 0;
  const next = () => {
    const at = TOKEN.lastIndex;
    const found = TOKEN.exec(written);
    if (found === null) throw new Changed(written.slice(at, at + 20));
    return found[1];
  };
  /** @param {string} token @param {number} depth @returns {unknown} */
  const value = (token, depth) => {
    if (token === "[" || token === "{") {
      if (depth === 0) throw new Changed("depth");
      return token === "[" ? list(depth - 1) : object(depth - 1);
    }
    return /^[-0-9]/.test(token) ? number(token, isJson) : JSON.parse(token);
  };
  /** @param {number} depth */
  const list = (depth) => {
    const found = [];
    for (let token = next(); token !== "]"; token = next()) found.push(value(token === "," ? next() : token, depth));
    return found;
  };
  /** @param {number} depth */
  const object = (depth) => {
    /** @type {Record<string, unknown>} */
    const found = {};
    for (let token = next(); token !== "}"; token = next()) {
      const name = JSON.parse(token === "," ? next() : token);
      next(); // the colon
      if (Object.hasOwn(found, name) || name === "__proto__") throw new Changed(name);
      found[name] = value(next(), depth);
    }
    return found;
  };
  try {
    return value(next(), DEPTH_MAX);
  } catch (error) {
    if (error instanceof Changed || error instanceof SyntaxError) return null;
    throw error;
  }
}

/** @param {string} text @param {boolean} isJson */
function number(text, isJson) {
  if (/^-?[0-9]+$/.test(text)) {
    const whole = BigInt(text);
    if (whole >= -(2n ** 53n) + 1n && whole < 2n ** 53n) return Number(whole);
    if (isJson || whole < -(2n ** 63n) || whole >= 2n ** 64n) throw new Changed(text);
    return whole;
  }
  const float = Number(text);
  if (digitsOf(text) !== digitsOf(String(float))) throw new Changed(text);
  return float;
}

/** The same text for two spellings of a number: significant digits, and the power of ten. @param {string} text */
function digitsOf(text) {
  const found = /^(-?)([0-9]+)(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]{1,4}))?$/.exec(text);
  if (found === null) return text;
  const [, sign, whole, fraction = "", exponent = "0"] = found;
  const all = (whole + fraction).replace(/^0+/, "");
  const digits = all.replace(/0+$/, "");
  return digits === "" ? "0" : `${sign}${digits}e${Number(exponent) - fraction.length + all.length - digits.length}`;
}

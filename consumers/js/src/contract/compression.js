/** Unpacks bodies that were compressed with zstd, with the dictionaries that their headers name. */

import { MalformedMessage } from "./decoding.js";

/** The largest body that is unpacked; a bridge's bodies have at most a few megabytes. */
const UNPACKED_BYTES_MAX = 256 * 1024 * 1024;
const MAGIC = 0xfd2fb528;
const DICTIONARY_MAGIC = 0xec30a437;

/**
 * The content size of a body that is exactly one frame; else an error. https://datatracker.ietf.org/doc/html/rfc8878
 * @param {Uint8Array} body
 */
export function contentSizeOf(body) {
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  try {
    if (view.getUint32(0, true) !== MAGIC) throw new MalformedMessage("not a zstd frame");
    const descriptor = body[4];
    const isSingle = (descriptor & 0x20) !== 0;
    const sizeBytes = [isSingle ? 1 : 0, 2, 4, 8][descriptor >> 6];
    let at = 5 + (isSingle ? 0 : 1) + [0, 1, 2, 4][descriptor & 3];
    if (sizeBytes === 0) throw new MalformedMessage("a zstd frame without its content's size");
    const size =
      sizeBytes === 1 ? body[at]
      : sizeBytes === 2 ? view.getUint16(at, true) + 256
      : sizeBytes === 4 ? view.getUint32(at, true)
      : Number(view.getBigUint64(at, true));
    at += sizeBytes;
    for (let isLast = false; !isLast; ) {
      const header = view.getUint16(at, true) | (view.getUint8(at + 2) << 16);
      isLast = (header & 1) === 1;
      at += 3 + (((header >> 1) & 3) === 1 ? 1 : header >> 3);
    }
    at += descriptor & 4 ? 4 : 0;
    if (at !== body.length) throw new MalformedMessage("not exactly one zstd frame");
    if (size > UNPACKED_BYTES_MAX) throw new MalformedMessage(`a zstd frame of ${size} bytes unpacked`);
    return size;
  } catch (error) {
    if (error instanceof RangeError) throw new MalformedMessage("a zstd frame that was cut off");
    throw error;
  }
}

/** @type {Promise<any> | undefined} */
let loading;

/** The WebAssembly of zstd, loaded when the first compressed message comes. `url` is where a page keeps it. @param {string} [url] */
function zstd(url) {
  loading ??= import("@bokuweb/zstd-wasm").then(async (loaded) => {
    const module = "init" in loaded ? loaded : /** @type {any} */ (loaded).default;
    await module.init(url);
    return module;
  });
  return loading;
}

/** Unpacks bodies. */
export class Decompressor {
  #zstd = /** @type {any} */ (null);
  #context = 0;
  /** @type {Map<string, Uint8Array>} */
  #dictionaries = new Map();
  #fetch;
  #url;

  /**
   * @param {(id: string) => Promise<Uint8Array | null>} fetch Reads a key of KV `dictionaries`.
   * @param {string} [url] Where a page keeps `zstd.wasm`, if its bundler does not know.
   */
  constructor(fetch, url) {
    this.#fetch = fetch;
    this.#url = url;
  }

  /** Whether a body must be unpacked. @param {Readonly<Record<string, string>>} headers */
  static isPacked(headers) {
    return headers["Content-Encoding"] !== undefined;
  }

  /** The body before compression. @param {Readonly<Record<string, string>>} headers @param {Uint8Array} body */
  async unpack(headers, body) {
    const coding = headers["Content-Encoding"];
    if (coding === undefined) return body;
    if (coding !== "zstd") throw new MalformedMessage(`a body in ${coding}`);
    const size = contentSizeOf(body);
    this.#zstd ??= await zstd(this.#url);
    const dictionary = await this.#dictionary(headers["Dictionary-Id"]);
    if (size === 0) return new Uint8Array();
    try {
      if (dictionary === null) return /** @type {Uint8Array} */ (this.#zstd.decompress(body));
      this.#context ||= this.#zstd.createDCtx();
      return /** @type {Uint8Array} */ (this.#zstd.decompressUsingDict(this.#context, body, dictionary));
    } catch (error) {
      throw new MalformedMessage(`not a zstd frame: ${error}`);
    }
  }

  /** @param {string | undefined} id */
  async #dictionary(id) {
    if (id === undefined) return null;
    let content = this.#dictionaries.get(id);
    if (content === undefined) {
      const found = await this.#fetch(id);
      if (found === null) throw new DictionaryMissing(id);
      if (found.length < 8 || new DataView(found.buffer, found.byteOffset).getUint32(0, true) !== DICTIONARY_MAGIC) {
        throw new MalformedMessage(`${id} is not a zstd dictionary`);
      }
      this.#dictionaries.set(id, (content = found));
    }
    return content;
  }
}

/** A message needs a dictionary that KV `dictionaries` does not hold. */
export class DictionaryMissing extends Error {
  /** @param {string} id */
  constructor(id) {
    super(`dictionary ${id} is not in KV dictionaries: a message cannot be read without it`);
  }
}

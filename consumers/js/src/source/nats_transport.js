/** What a replica asks of NATS: JetStream's requests over one connection. */

import { Transient } from "../errors.js";
import { PullConsumer } from "./pull_consumer.js";
import { SequenceReader } from "./sequence_reader.js";

const REQUEST_MS = 5_000;
const INACTIVE_MS = 300_000;
const [NO_MESSAGE, NO_STREAM, NO_CONSUMER] = [10037, 10059, 10014];

/** JetStream refused a request. */
class JetStreamError extends Transient {
  /** @param {string} doing @param {{err_code: number, description: string}} error */
  constructor(doing, error) {
    super(`cannot ${doing}: ${error.description}`);
    this.errCode = error.err_code;
  }
}

/** @implements {Required<import("../mirror/source_stream.js").Transport>} */
export class NatsTransport {
  #nats;
  #prefix;
  #mayDelete = true;
  #makesConsumers;

  /**
   * `domain`: JetStream's, if it is in another account. `makesConsumers`: false for a user who may not.
   * @param {import("@nats-io/nats-core").NatsConnection} nats @param {{domain?: string, makesConsumers?: boolean}} [more]
   */
  constructor(nats, { domain, makesConsumers = true } = {}) {
    this.#nats = nats;
    this.#makesConsumers = makesConsumers;
    this.#prefix = domain ? `$JS.${domain}.API` : "$JS.API";
  }

  /** @param {string} subject @param {object} body @param {string} doing @returns {Promise<any>} */
  async #api(subject, body, doing) {
    let reply;
    try {
      reply = await this.#nats.request(`${this.#prefix}.${subject}`, JSON.stringify(body), { timeout: REQUEST_MS });
    } catch (cause) {
      const said = cause instanceof Error ? cause.message : String(cause);
      throw new Transient(`cannot ${doing}: ${said}`, { code: "WB213", cause });
    }
    const answer = /** @type {any} */ (JSON.parse(new TextDecoder().decode(reply.data)));
    if (answer.error) throw new JetStreamError(doing, answer.error);
    return answer;
  }

  /** @param {string} stream @param {boolean} [deleted] */
  async streamInfo(stream, deleted = false) {
    try {
      return await this.#api(`STREAM.INFO.${stream}`, deleted ? { deleted_details: true } : {}, `look at stream ${stream}`);
    } catch (error) {
      if (error instanceof JetStreamError && error.errCode === NO_STREAM) return null;
      throw error;
    }
  }

  /** @param {string} stream @param {{seq?: number, next_by_subj?: string, last_by_subj?: string}} query @returns {Promise<import("../mirror/source_stream.js").Message | null>} */
  async message(stream, query) {
    let reply;
    try {
      reply = await this.#api(`STREAM.MSG.GET.${stream}`, query, `read a message of stream ${stream}`);
    } catch (error) {
      if (error instanceof JetStreamError && [NO_MESSAGE, NO_STREAM].includes(error.errCode)) return null;
      throw error;
    }
    const { subject, seq, hdrs, data, time } = reply.message;
    return { subject, seq, headers: headersOf(bytesOf(hdrs ?? "")), data: bytesOf(data ?? ""), time };
  }

  /** @param {string} stream @param {readonly string[]} filters @param {number} startSeq */
  async consume(stream, filters, startSeq) {
    if (!this.#makesConsumers) return new SequenceReader(this.#nats, this, stream, filters, startSeq);
    const name = `walbridge-${crypto.randomUUID()}`;
    const config = {
      name, deliver_policy: "by_start_sequence", opt_start_seq: startSeq, ack_policy: "none", replay_policy: "instant",
      filter_subjects: filters, mem_storage: true, num_replicas: 1, inactive_threshold: INACTIVE_MS * 1_000_000,
    };
    const request = { stream_name: stream, config, action: "create" };
    const info = await this.#api(`CONSUMER.CREATE.${stream}.${name}`, request, `make a consumer of stream ${stream}`);
    const next = `${this.#prefix}.CONSUMER.MSG.NEXT.${stream}.${name}`;
    return new PullConsumer(this.#nats, stream, next, info.num_pending ?? -1, () => this.#delete(stream, name));
  }

  /** @param {string} stream @param {string} name */
  async #delete(stream, name) {
    if (!this.#mayDelete || this.#nats.isClosed()) return;
    try {
      await this.#api(`CONSUMER.DELETE.${stream}.${name}`, {}, "delete a consumer");
    } catch (error) {
      // many readers may not; the consumer ends by itself after some minutes
      if (!(error instanceof JetStreamError && error.errCode === NO_CONSUMER)) this.#mayDelete = false;
    }
  }

  /** @param {string} subject @param {Uint8Array} [body] */
  publish(subject, body) {
    this.#nats.publish(subject, body);
  }
}

/** @param {string} base64 */
const bytesOf = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

/** A stored header block: a status line, then one header a line. @param {Uint8Array} block @returns {Record<string, string>} */
export function headersOf(block) {
  /** @type {Record<string, string>} */
  const headers = {};
  for (const line of new TextDecoder().decode(block).split("\r\n").slice(1)) {
    const colon = line.indexOf(":");
    if (colon > 0) headers[line.slice(0, colon)] = line.slice(colon + 1).trim();
  }
  return headers;
}

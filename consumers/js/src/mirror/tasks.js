/** Tasks that end together, a lock, and news to wait for. */

import { clock } from "./clock.js";

/** A task was told to end. */
export class Ended extends Error {}

/** Tasks of which the first error ends all. */
export class Tasks {
  #controller = new AbortController();
  /** @type {Set<Promise<void>>} */
  #running = new Set();
  /** @type {unknown} */
  #error;

  /** Aborted once a task has failed or `end` was called. */
  get signal() {
    return this.#controller.signal;
  }

  /** @param {() => Promise<void>} task */
  start(task) {
    const running = (async () => {
      try {
        await task();
      } catch (error) {
        this.end(error);
      }
    })().finally(() => this.#running.delete(running));
    this.#running.add(running);
  }

  /** End all tasks. @param {unknown} error */
  end(error) {
    if (this.signal.aborted) return;
    this.#error = error;
    this.#controller.abort(new Ended("ended"));
  }

  /** Wait until all tasks have ended; throw the error that ended them. */
  async done() {
    if (!this.signal.aborted) await new Promise((resolve) => this.signal.addEventListener("abort", resolve, { once: true }));
    while (this.#running.size > 0) await Promise.all(this.#running);
    throw this.#error;
  }
}

/** Wait so long. @param {number} ms @param {AbortSignal} signal @returns {Promise<void>} */
export const sleep = (ms, signal) => new News().wait(signal, ms);

/** @type {(() => void)[]} */
const breathing = [];
/** @type {MessageChannel | undefined} */
let channel;

/**
 * Let what has arrived be taken in: wait until the tasks that are queued now have run. A timer would wait for milliseconds.
 * @returns {Promise<void>}
 */
export function breath() {
  return new Promise((resolve) => {
    if (typeof setImmediate === "function") {
      setImmediate(resolve);
      return;
    }
    if (channel === undefined) {
      channel = new MessageChannel();
      channel.port1.onmessage = () => breathing.shift()?.();
    }
    breathing.push(resolve);
    channel.port2.postMessage(0);
  });
}

/** Something that happens again and again. */
export class News {
  /** @type {Set<() => void>} */
  #waiting = new Set();

  /** It has happened. */
  ring() {
    for (const wake of [...this.#waiting]) wake();
  }

  /** Wait until it happens, or so long. @param {AbortSignal} signal @param {number} [ms] @returns {Promise<void>} */
  wait(signal, ms) {
    return new Promise((resolve, reject) => {
      if (signal.aborted) return reject(new Ended("ended"));
      /** @type {ReturnType<typeof setTimeout> | undefined} */
      let timer;
      const clear = () => {
        clearTimeout(timer);
        this.#waiting.delete(wake);
        signal.removeEventListener("abort", abort);
      };
      const wake = () => (clear(), resolve());
      const abort = () => (clear(), reject(new Ended("ended")));
      if (ms !== undefined) timer = setTimeout(wake, ms / clock.speed);
      this.#waiting.add(wake);
      signal.addEventListener("abort", abort);
    });
  }

  /** Wait until a condition holds, which may change whenever it rings. @param {AbortSignal} signal @param {() => boolean} condition */
  async until(signal, condition) {
    while (!condition()) await this.wait(signal);
  }
}

/** Lets one task at a time in, in order of arrival. */
export class Lock {
  #tail = Promise.resolve();

  /** Wait for the turn; call what is returned to end it. @returns {Promise<() => void>} */
  async acquire() {
    const before = this.#tail;
    /** @type {() => void} */
    let release = () => {};
    this.#tail = new Promise((resolve) => (release = resolve));
    await before;
    return release;
  }

  /** @template T @param {() => Promise<T>} body @returns {Promise<T>} */
  async hold(body) {
    const release = await this.acquire();
    try {
      return await body();
    } finally {
      release();
    }
  }
}

/** Lets so many tasks in at a time. */
export class Limit {
  /** @type {(() => void)[]} */
  #waiting = [];
  #free;

  /** @param {number} count */
  constructor(count) {
    this.#free = count;
  }

  /** @template T @param {() => Promise<T>} body @returns {Promise<T>} */
  async hold(body) {
    if (this.#free > 0) this.#free -= 1;
    else await new Promise((/** @type {(value?: unknown) => void} */ resolve) => this.#waiting.push(resolve));
    try {
      return await body();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#free += 1;
      else next();
    }
  }
}

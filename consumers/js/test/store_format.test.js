/** A store of a later version is refused and left as it is, in every kind that is here. */

import assert from "node:assert/strict";
import test from "node:test";

import { Fatal } from "../src/errors.js";
import { ReplicaState } from "../src/mirror/replica_state.js";
import { Lock } from "../src/mirror/tasks.js";
import { KINDS, openStore } from "./stores.js";

for (const kind of KINDS) {
  test(`${kind}: a store of a later version is refused`, async () => {
    const store = await openStore(kind);
    const load = () => new ReplicaState(store, "CDC", {}, new Lock()).load();
    await store.claim();
    await load();
    const owner = store.dialect.own("owner");
    const before = await store.query(`SELECT * FROM ${owner}`);
    await store.run([{ sql: `UPDATE ${owner} SET format = 2`, params: [[]] }], true);
    await assert.rejects(load(), (error) => error instanceof Fatal && error.code === "WB516");
    await store.run([{ sql: `UPDATE ${owner} SET format = 1`, params: [[]] }], true);
    assert.deepEqual(await store.query(`SELECT * FROM ${owner}`), before);
    await store.close();
  });
}

import assert from "node:assert/strict";
import { test } from "node:test";

import { nestedOrNull } from "../src/contract/exact_json.js";
import { documentText } from "../src/stores/binding.js";

test("a document is nested where that loses nothing", () => {
  assert.deepEqual(nestedOrNull(' {"b": [1, 2.50, null, "x\\"y"], "a": {}} ', false), { b: [1, 2.5, null, 'x"y'], a: {} });
  assert.equal(documentText(nestedOrNull("[18446744073709551615, 1e2, -0.5]", false)), "[18446744073709551615,100,-0.5]");
});

test("it stays text where a reader would see another document", () => {
  for (const text of ["null", '{"a": 1, "a": 2}', "[0.1000000000000000055]", "[1e400]", "[9007199254740993.0]", "[".repeat(101) + "]".repeat(101), '{"__proto__": 1}']) {
    assert.equal(nestedOrNull(text, false), null, text);
  }
  assert.equal(nestedOrNull("[9007199254740993]", true), null);
});

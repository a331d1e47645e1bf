import { conformance } from "./conformance.js";
import { KINDS } from "./stores.js";

for (const kind of KINDS) if (kind !== "pglite") conformance(kind, 8);

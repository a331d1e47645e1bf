import { conformance } from "./conformance.js";

conformance("pglite", 1); // they share a database

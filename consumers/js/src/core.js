/** What a program needs that reads the stream by itself: decoding, the rules, and the pieces of a replica without any I/O. */

export * from "./contract/compression.js";
export * from "./contract/decoding.js";
export * from "./contract/positions.js";
export { nativeType, Raw } from "./contract/records.js";
export * from "./contract/stream_view.js";
export * from "./contract/subjects.js";
export * from "./contract/table_token.js";
export * from "./errors.js";
export * from "./rules/rows.js";
export * from "./rules/track.js";

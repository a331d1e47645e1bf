/** Bundles the page and its worker: `node demo/build.js FOLDER`. */

import { copyFileSync, mkdirSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const modules = join(here, "..", "node_modules");
const into = process.argv[2] ?? join(here, "dist");

mkdirSync(into, { recursive: true });
await build({
  entryPoints: [join(here, "page.js"), join(here, "worker.js")], outdir: into, bundle: true, splitting: true, format: "esm",
  minify: true, platform: "browser", target: "es2022", logLevel: "error",
  external: ["node:*", "fs", "fs/promises", "path", "url", "module", "crypto"], // PGlite asks for them in Node only
});
const pglite = join(modules, "@electric-sql", "pglite", "dist");
const assets = [
  join(here, "index.html"), join(modules, "@sqlite.org", "sqlite-wasm", "dist", "sqlite3.wasm"),
  join(modules, "@bokuweb", "zstd-wasm", "dist", "web", "zstd.wasm"),
  ...readdirSync(pglite).filter((name) => /^(pglite|initdb)\.(wasm|data)$/.test(name)).map((name) => join(pglite, name)),
];
for (const file of assets) copyFileSync(file, join(into, file.split("/").at(-1)));

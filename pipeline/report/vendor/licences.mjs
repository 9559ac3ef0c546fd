// Writes LICENSES.txt: name, version and licence of every package that went into libraries.js.
import { existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";

const packages = Object.entries(JSON.parse(readFileSync("package-lock.json")).packages)
  .filter(([path, entry]) => path && !entry.dev && existsSync(path))
  .sort(([a], [b]) => (a < b ? -1 : 1));
const texts = packages.map(([path, entry]) => {
  const file = readdirSync(path).find((name) => /^licen[cs]e/i.test(name));
  if (!file) throw new Error(`${path} carries no licence`);
  const name = path.slice("node_modules/".length);
  return `${name} ${entry.version} (${entry.license})\n\n${readFileSync(`${path}/${file}`, "utf8").trim()}\n`;
});
writeFileSync("LICENSES.txt", texts.join(`\n${"-".repeat(100)}\n\n`));

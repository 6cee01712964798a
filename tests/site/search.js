/*
 * Search a built site as a browser does: the theme's worker and the site's rewriting of queries, in Node.
 * Arguments: the site's directory. Standard input: a JSON list of queries. Prints the locations found for each, best first,
 * one for each page.
 */
const { readFileSync, readdirSync } = require("node:fs");
const { createContext, runInContext } = require("node:vm");

const site = process.argv[2];
const scripts = `${site}/assets/javascripts`;
const worker = readdirSync(`${scripts}/workers`).find((name) => /^search\.\w+\.min\.js$/.test(name));
const [SETUP, QUERY, RESULT] = [0, 2, 3];

async function main() {
  let handle;
  const found = [];
  const inside = createContext({
    console: { warn() {} },
    addEventListener: (_, listener) => (handle = listener),
    postMessage: ({ type, data }) => type === RESULT && found.push(data.items.map(([best]) => best.location)),
  });
  inside.self = inside;
  runInContext(readFileSync(`${scripts}/workers/${worker}`, "utf8"), inside);

  class Worker {
    postMessage(data) {
      return handle({ data });
    }
  }
  runInContext(readFileSync(`${scripts}/search-words.js`, "utf8"), createContext({ Worker }));

  const page = new Worker();
  const index = JSON.parse(readFileSync(`${site}/search/search_index.json`, "utf8"));
  await page.postMessage({ type: SETUP, data: { ...index, options: { suggest: true } } });
  for (const query of JSON.parse(readFileSync(0, "utf8"))) await page.postMessage({ type: QUERY, data: query });
  process.stdout.write(JSON.stringify(found));
}

main();

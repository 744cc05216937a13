// node search_book.js SITE WORD...: the pages that the book's own search finds, best first, as JSON; no browser needed.
const fs = require("fs"), vm = require("vm");
const [site, ...words] = process.argv.slice(2);
const nothing = { addEventListener() {}, getElementById: () => null, querySelector: () => null, readyState: "loading" };
const page = { ...nothing, documentElement: { dataset: { content_root: "./" } } };
const world = vm.createContext({ document: page, window: {}, SPHINX_HIGHLIGHT_ENABLED: false, console, URLSearchParams });
const scripts = ["documentation_options.js", "doctools.js", "searchtools.js", "language_data.js"].map((name) => `_static/${name}`);
const code = [...scripts, "searchindex.js"].map((name) => fs.readFileSync(`${site}/${name}`, "utf8"));
code.splice(4, 0, "var Stemmer = window.Stemmer");
const ask = `JSON.stringify(${JSON.stringify(words)}.map((w) => Search._performSearch(...Search._parseQuery(w)).reverse().map((r) => r[0])))`;
console.log(vm.runInContext([...code, ask].join(";\n"), world));

// node book/live/static.js: the pictures that stand in the pages until a script has run, by the same code.
"use strict";
const fs = require("fs"), folder = __dirname;
const { changePicture, CHANGE } = require("./change.js");
const { forcesPicture, FORCES } = require("./forces.js");
const { startOf, stepOf, particlesPicture, PARTICLES } = require("./particles.js");

const values = (knobs) => Object.fromEntries(knobs.map(({ name, value }) => [name, value]));
const state = startOf(1);
for (let k = 0; k < 200; k++) stepOf(state, values(PARTICLES));
fs.writeFileSync(`${folder}/change.svg`, changePicture(values(CHANGE)) + "\n");
fs.writeFileSync(`${folder}/forces.svg`, forcesPicture(values(FORCES)) + "\n");
fs.writeFileSync(`${folder}/particles.svg`, particlesPicture(state) + "\n");

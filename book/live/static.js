// node book/live/static.js: the pictures that stand in the pages until a script has run, by the same code.
"use strict";
const fs = require("fs"), folder = __dirname;
const { changePicture, CHANGE } = require("./change.js");
const { forcesPicture, FORCES } = require("./forces.js");
const { startOf, stepOf, particlesPicture, PARTICLES } = require("./particles.js");
const { newModel, learn, phantomsPicture, PHANTOMS } = require("./phantoms.js");
const { layersPicture, LAYERS } = require("./layers.js");
const { latentsPicture, LATENTS_KNOBS } = require("./latents.js");
const { streamPicture, STREAM } = require("./stream.js");
const { thresholdPicture, THRESHOLD } = require("./threshold.js");

const values = (knobs) => Object.fromEntries(knobs.map(({ name, value }) => [name, value]));
const keep = (name, picture) => fs.writeFileSync(`${folder}/${name}.svg`, picture + "\n");
const state = startOf(1), model = newModel();
for (let k = 0; k < 200; k++) stepOf(state, values(PARTICLES));
for (let k = 0; k < 100; k++) learn(model, values(PHANTOMS));
keep("change", changePicture(values(CHANGE)));
keep("forces", forcesPicture(values(FORCES)));
keep("particles", particlesPicture(state));
keep("phantoms", phantomsPicture(model, values(PHANTOMS)));
keep("layers", layersPicture(values(LAYERS)));
keep("latents", latentsPicture(values(LATENTS_KNOBS)));
keep("stream", streamPicture(values(STREAM)));
keep("threshold", thresholdPicture(values(THRESHOLD)));

// Contrastive divergence and its phantom modes: chains that begin at the data never see a well far from them.
// An energy of the line, a sum of bumps with weights w, learns while one watches; all is known by quadrature.
"use strict";
if (typeof module !== "undefined") Object.assign(globalThis, require("./live.js"));

const CENTRES = Array.from({ length: 25 }, (_, j) => -6 + j / 2), BUMP = 0.5, STEP = 0.03, RATE = 0.4;
const bump = (x, j) => Math.exp(-0.5 * ((x - CENTRES[j]) / BUMP) ** 2);

// E(x) = sum_j w_j bump_j(x) + (x / 5)^8, and its slope; the power is a wall that is not learned
function energyOn(x, w) {
  let value = (x / 5) ** 8, slope = (8 / 5) * (x / 5) ** 7;
  for (let j = 0; j < w.length; j++) {
    const part = w[j] * bump(x, j);
    value += part;
    slope -= (part * (x - CENTRES[j])) / BUMP ** 2;
  }
  return { value, slope };
}

// Langevin: down the slope, and shaken
function walked(x, w, steps, random) {
  for (let k = 0; k < steps; k++) x += -STEP * energyOn(x, w).slope + Math.sqrt(2 * STEP) * normal(random);
  return x;
}

// the gradient of the loss in w: mean bump at the data minus mean bump at the ends of the chains
const contrast = (data, ends) => CENTRES.map((_, j) => (data.reduce((s, x) => s + bump(x, j), 0) - ends.reduce((s, x) => s + bump(x, j), 0)) / data.length);

const MODES = [-2.6, -0.4], SPREAD = 0.4; // of the data, equally often
const truth = (x) => MODES.reduce((sum, m) => sum + Math.exp(-0.5 * ((x - m) / SPREAD) ** 2), 0) / (2 * SPREAD * Math.sqrt(2 * Math.PI));
const GRID = Array.from({ length: 241 }, (_, k) => -6 + k / 20);

// the model's density on the grid, its mass where no data are, and KL(data || model) in nats
function judged(w) {
  const raw = GRID.map((x) => Math.exp(-energyOn(x, w).value)), total = raw.reduce((a, b) => a + b) / 20;
  const p = raw.map((v) => v / total), away = GRID.reduce((sum, x, k) => sum + (x > 1.2 ? p[k] / 20 : 0), 0);
  return { p, away, kl: GRID.reduce((sum, x, k) => sum + (truth(x) > 1e-12 ? (truth(x) * Math.log(truth(x) / p[k])) / 20 : 0), 0) };
}

// a wide energy with a deep well at 3, where no data are
const newModel = () => ({ w: CENTRES.map((c) => -3.5 * Math.exp(-0.5 * ((c - 3) / 0.5) ** 2)), updates: 0, random: uniform(11) });

// chains begin at the data, a share of them anywhere; where they begin and end
function chainsOf(w, { steps, share }, random, count = 80) {
  const data = Array.from({ length: count }, () => MODES[random() < 0.5 ? 0 : 1] + SPREAD * normal(random));
  const begin = data.map((x, k) => (k < share * count ? -5 + 10 * random() : x));
  return { data, begin, ends: begin.map((x) => walked(x, w, steps, random)) };
}
function learn(model, values) {
  const { data, ends } = chainsOf(model.w, values, model.random), slope = contrast(data, ends);
  model.w = model.w.map((v, j) => v - RATE * slope[j]);
  model.updates += 1;
}

function phantomsPicture(model, values) {
  const { p, away, kl } = judged(model.w), { begin, ends } = chainsOf(model.w, values, uniform(2));
  const across = (x) => 320 + 52 * x, up = (v) => 250 - 260 * Math.min(v, 0.85);
  const curve = (f) => GRID.map((x, k) => [across(x), f(x, k)]), energies = GRID.map((x) => energyOn(x, model.w).value), floor = Math.min(...energies);
  const dot = (x, y, fill) => tag("circle", { cx: across(Math.max(-6, Math.min(6, x))), cy: y, r: 2.4, fill, "fill-opacity": 0.8 });
  const said = (x, y, fill, text) => tag("text", { x, y, fill }, text);
  return svg(640, 330, [
    tag("path", { d: path([[across(-6), 250], ...curve((_, k) => up(p[k])), [across(6), 250]], true), fill: BLUE, "fill-opacity": 0.4 }),
    tag("path", { d: path(curve((x) => up(truth(x)))), stroke: ORANGE, "stroke-width": 2, fill: "none" }),
    tag("path", { d: path(curve((_, k) => 240 - 14 * Math.min(energies[k] - floor, 12))), stroke: INK, "stroke-width": 1.5, fill: "none" }),
    tag("path", { d: "M8 250H632", stroke: INK }),
    ...begin.map((x, k) => tag("path", { d: `M${across(x).toFixed(1)} 268L${across(Math.max(-6, Math.min(6, ends[k]))).toFixed(1)} 300`, stroke: INK, "stroke-width": 0.4 })),
    ...begin.map((x) => dot(x, 268, ORANGE)), ...ends.map((x) => dot(x, 300, BLUE)),
    said(12, 20, ORANGE, "data"), said(55, 20, BLUE, "model"), said(108, 20, INK, "energy"), said(12, 322, INK, "chains: begin (above), end (below)"),
    said(12, 42, INK, `${model.updates} updates, KL ${kl.toFixed(2)} nats`), said(12, 64, BLUE, `${(100 * away).toFixed(0)} % of the model where no data are`),
  ].join(""));
}

const PHANTOMS = [
  { name: "steps", label: "steps k of each chain", min: 1, max: 100, step: 1, value: 10 },
  { name: "share", label: "share that begins anywhere", min: 0, max: 1, step: 0.05, value: 0 },
];

{
  const { figure, picture, text } = place("phantoms");
  if (figure) {
    let model = newModel(), left = 0;
    const draw = () => (picture.innerHTML = phantomsPicture(model, values)), values = sliders(figure, PHANTOMS, () => draw());
    const more = () => (learn(model, values), draw(), --left > 0 && setTimeout(more, 30));
    button(figure, "Learn for 200 updates", () => { const idle = left <= 0; left = 200; if (idle) more(); });
    button(figure, "One update", () => (learn(model, values), draw()));
    button(figure, "Again", () => ((left = 0), (model = newModel()), draw()));
    figure.append(text);
    draw();
  }
}

if (typeof module !== "undefined") module.exports = { energyOn, walked, contrast, judged, newModel, chainsOf, learn, phantomsPicture, truth, CENTRES, PHANTOMS };

// Particles on an energy of the plane: Langevin falls down the slope and is shaken, Hamiltonian Monte Carlo rolls.
"use strict";
if (typeof module !== "undefined") Object.assign(globalThis, require("./live.js"));

const WELLS = [[-1.6, -0.8], [1.6, -0.8], [0, 1.6]], WIDTH = 0.55; // three Gaussian wells of this standard deviation

// E(x) = -log sum_k exp(-|x - m_k|^2 / 2 s^2), and its gradient
function energyOf(x) {
  const s = WELLS.map(([a, b]) => -((x[0] - a) ** 2 + (x[1] - b) ** 2) / (2 * WIDTH ** 2));
  const top = Math.max(...s), weights = s.map((v) => Math.exp(v - top)), total = weights.reduce((a, b) => a + b);
  const slope = [0, 1].map((i) => WELLS.reduce((sum, m, k) => sum + (weights[k] / total) * (x[i] - m[i]), 0) / WIDTH ** 2);
  return { value: -top - Math.log(total), slope };
}

// x' = x - step grad E + sqrt(2 step temperature) noise
function langevin(x, { step, heat }, noise) {
  const { slope } = energyOf(x), shake = Math.sqrt(2 * step * heat);
  return x.map((v, i) => v - step * slope[i] + shake * noise[i]);
}

// Hamilton's equations in `count` steps: half a push, a move, half a push
function leapfrogOf(x, r, step, count) {
  for (let k = 0; k < count; k++) {
    const before = energyOf(x).slope, half = r.map((v, i) => v - 0.5 * step * before[i]);
    x = x.map((v, i) => v + step * half[i]);
    const after = energyOf(x).slope;
    r = half.map((v, i) => v - 0.5 * step * after[i]);
  }
  return { x, r };
}

// at a temperature T the energy is divided by T: then momenta of variance T and the same accept rule with E / T
function hmc(x, { step, heat, leaps }, noise, dice) {
  const r = noise.map((v) => v * Math.sqrt(heat)), end = leapfrogOf(x, r, Math.sqrt(2 * step), leaps);
  const total = (x, r) => (energyOf(x).value + 0.5 * (r[0] ** 2 + r[1] ** 2)) / heat;
  return Math.log(dice) < total(x, r) - total(end.x, end.r) ? end.x : x;
}

// what one sees: the wells as a grid of squares, drawn once, and the particles of both samplers
const across = (x, left) => [left + 150 + 44 * x[0], 165 - 44 * x[1]];
function wells() {
  const cells = [];
  for (let i = 0; i < 40; i++)
    for (let j = 0; j < 40; j++) {
      const x = [(i - 19.5) / 6, (j - 19.5) / 6], p = Math.exp(-energyOf(x).value), [u, v] = across(x, 0);
      if (p > 0.05) cells.push(tag("rect", { x: u - 3.7, y: v - 3.7, width: 7.4, height: 7.4, "fill-opacity": 0.4 * p }));
    }
  return tag("g", { id: "wells", fill: GREEN }, cells.join("")) + tag("use", { href: "#wells", x: 320 });
}
function movingPart({ left, right, steps }) {
  const dot = (x, shift) => { const [cx, cy] = across(x, shift); return tag("circle", { cx, cy, r: 2.2 }); };
  const dots = (all, shift, fill) => tag("g", { fill }, all.map((x) => dot(x, shift)).join(""));
  const upper = (all) => (100 * all.filter((x) => x[1] > 0.4).length / all.length).toFixed(0);
  const said = (all, x, name) => tag("text", { x, y: 20, fill: INK }, `${name}: ${upper(all)} % in the upper well`);
  const below = tag("text", { x: 320, y: 322, fill: INK, "text-anchor": "middle" }, `${steps} steps; a third would be right`);
  return dots(left, 0, BLUE) + dots(right, 320, ORANGE) + said(left, 20, "Langevin") + said(right, 340, "HMC") + below;
}
const particlesPicture = (state) => svg(640, 330, wells() + tag("g", { id: "moving" }, movingPart(state)));

// all particles in the lower left well, and one step of each sampler
function startOf(seed, count = 150) {
  const random = uniform(seed), left = Array.from({ length: count }, () => WELLS[0].map((m) => m + 0.3 * normal(random)));
  return { random, left, right: left, steps: 0 };
}
function stepOf(state, values) {
  const draw = () => [normal(state.random), normal(state.random)];
  state.left = state.left.map((x) => langevin(x, values, draw()));
  state.right = state.right.map((x) => hmc(x, values, draw(), state.random()));
  state.steps += 1;
}

const PARTICLES = [
  { name: "step", label: "step of Langevin", min: 0.005, max: 0.3, step: 0.005, value: 0.03 },
  { name: "heat", label: "temperature", min: 0.2, max: 3, step: 0.1, value: 1 },
  { name: "leaps", label: "leapfrogs of HMC", min: 1, max: 20, step: 1, value: 8 },
];

{
  const { figure, picture, text } = place("particles");
  if (figure) {
    let state = startOf(1), runs = !matchMedia("(prefers-reduced-motion: reduce)").matches, seen = false;
    picture.innerHTML = particlesPicture(state); // the wells once, the particles at each step
    const draw = () => (picture.querySelector("#moving").innerHTML = movingPart(state));
    const values = sliders(figure, PARTICLES, draw);
    button(figure, runs ? "Stop" : "Go", (made) => (made.textContent = (runs = !runs) ? "Stop" : "Go"));
    button(figure, "One step", () => (stepOf(state, values), draw()));
    button(figure, "Again from one well", () => ((state = startOf(1)), draw()));
    figure.append(text);
    new IntersectionObserver((found) => (seen = found[0].isIntersecting)).observe(figure); // nothing moves out of sight
    setInterval(() => runs && seen && state.steps < 2000 && (stepOf(state, values), draw()), 60);
  }
}

if (typeof module !== "undefined") module.exports = { energyOf, langevin, leapfrogOf, hmc, startOf, stepOf, particlesPicture, PARTICLES };

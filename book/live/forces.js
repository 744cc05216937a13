// Two forces in the loss of a flow: the prior pulls latents to zero, the log-determinant keeps them from collapsing.
// The smallest flow there is, z = x exp s, on 120 numbers x of a given spread.
"use strict";
if (typeof module !== "undefined") Object.assign(globalThis, require("./live.js"));

const NUMBERS = (() => {
  const random = uniform(7), drawn = Array.from({ length: 120 }, () => normal(random));
  const mean = drawn.reduce((a, b) => a + b) / 120, spread = Math.sqrt(drawn.reduce((a, b) => a + (b - mean) ** 2, 0) / 120);
  return drawn.map((v) => (v - mean) / spread); // mean 0, variance 1, exactly
})();

// the loss per datum and its slope in s: the part of the prior, and that of the determinant, in nats
function lossOf({ s, spread }) {
  const square = NUMBERS.reduce((sum, v) => sum + (v * spread * Math.exp(s)) ** 2, 0) / NUMBERS.length;
  return { prior: 0.5 * square + 0.5 * Math.log(2 * Math.PI), volume: -s, pull: square, push: -1 };
}

function forcesPicture({ s, spread }) {
  const across = (v) => 160 + 42 * Math.max(-3.6, Math.min(3.6, v)), along = (v) => 470 + 75 * v;
  const up = (v) => 235 - 28 * v;
  const here = lossOf({ s, spread }), sum = here.prior + here.volume;
  const bell = Array.from({ length: 73 }, (_, k) => -3.6 + k / 10).map((v) => [across(v), 230 - 300 * Math.exp(-0.5 * v * v) / Math.sqrt(2 * Math.PI)]);
  const grid = Array.from({ length: 81 }, (_, k) => -2 + k / 20);
  const line = (f) => path(grid.map((v) => [v, f(lossOf({ s: v, spread }))]).filter(([, l]) => l < 6.3).map(([v, l]) => [along(v), up(l)]));
  const arrow = (size, fill, y) => { // to the left for a positive slope: downhill
    const end = along(s) - Math.sign(size) * Math.min(120, 40 * Math.abs(size)), tip = Math.sign(size) * 8;
    return tag("path", { d: `M${along(s)} ${y}H${end}m${tip} -5L${end} ${y}l${tip} 5`, stroke: fill, "stroke-width": 3, fill: "none" });
  };
  const drawn = (d, stroke, wide = 1.5) => tag("path", { d, stroke, "stroke-width": wide, fill: "none" });
  const said = (x, y, fill, text) => tag("text", { x, y, fill }, text);
  const dots = NUMBERS.map((v, k) => tag("circle", { cx: across(v * spread * Math.exp(s)), cy: 226 - (k % 12) * 7, r: 2.4 }));
  return svg(640, 330, [
    drawn(path(bell), INK), tag("g", { fill: BLUE, "fill-opacity": 0.8 }, dots.join("")), drawn("M9 230H311", INK),
    said(12, 20, BLUE, `latents z = x exp s, mean of z²: ${here.pull.toFixed(2)}`), said(12, 255, INK, "the bell is the prior"),
    drawn(line((l) => l.prior), ORANGE), drawn(line((l) => l.volume), GREEN), drawn(line((l) => l.prior + l.volume), INK, 3),
    tag("circle", { cx: along(s), cy: Math.max(up(sum), 60), r: 5, fill: INK }),
    arrow(here.pull, ORANGE, 306), arrow(here.push, GREEN, 320),
    said(340, 20, ORANGE, `prior ${here.prior.toFixed(2)}`), said(440, 20, GREEN, `- log det ${here.volume.toFixed(2)}`),
    said(566, 20, INK, `loss ${sum.toFixed(2)}`), said(340, 42, INK, "loss against s; the pull of each part"),
  ].join(""));
}

const FORCES = [
  { name: "s", label: "log-scale s of the flow", min: -2, max: 2, step: 0.02, value: -1 },
  { name: "spread", label: "spread of the data", min: 0.4, max: 2.5, step: 0.05, value: 1.5 },
];

{
  const { figure, picture, text } = place("forces");
  if (figure) {
    const draw = (values) => (picture.innerHTML = forcesPicture(values));
    draw(sliders(figure, FORCES, draw));
    figure.append(text);
  }
}

if (typeof module !== "undefined") module.exports = { lossOf, forcesPicture, FORCES, NUMBERS };

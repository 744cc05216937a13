// The change of variables in one dimension: an interval keeps its area, whatever the map does to its length.
// x = f(z) = sinh(tails * asinh(z) + skew) (Jones, Pewsey 2009): both directions and the slope in closed form.
"use strict";
if (typeof module !== "undefined") Object.assign(globalThis, require("./live.js"));

const forwardOf = (x, { skew, tails }) => Math.sinh((Math.asinh(x) - skew) / tails); // data to latent, f^-1
const inverseOf = (z, { skew, tails }) => Math.sinh(tails * Math.asinh(z) + skew); // latent to data, f
const slopeOf = (x, { skew, tails }) => Math.cosh((Math.asinh(x) - skew) / tails) / (tails * Math.sqrt(1 + x * x)); // dz/dx
const latent = (z) => Math.exp(-0.5 * z * z) / Math.sqrt(2 * Math.PI); // p_z
const density = (x, map) => latent(forwardOf(x, map)) * slopeOf(x, map); // p_x

// the trapezium rule
function area(f, from, to, parts = 2000) {
  const h = (to - from) / parts;
  let sum = 0.5 * (f(from) + f(to));
  for (let k = 1; k < parts; k++) sum += f(from + k * h);
  return sum * h;
}

// what the figure says in numbers
function measured(values) {
  const z = [values.centre - values.width / 2, values.centre + values.width / 2];
  const x = z.map((end) => inverseOf(end, values));
  return { z, x, inLatent: area(latent, ...z), inData: area((v) => density(v, values), ...x) };
}

// two axes, latent above and data below, joined by the map; the interval is filled on both
function changePicture(values) {
  const { z, x, inLatent, inData } = measured(values);
  const across = (v) => 320 + v * 62, top = 150, bottom = 330;
  const grid = Array.from({ length: 401 }, (_, k) => -5 + k / 40);
  const curve = (f, base, of) => grid.filter((v) => v >= of[0] && v <= of[1]).map((v) => [across(v), base - 240 * Math.min(f(v), 0.55)]);
  const filled = (f, base, ends) => {
    const inside = grid.filter((v) => v > ends[0] && v < ends[1]);
    const up = [ends[0], ...inside, ends[1]].map((v) => [across(v), base - 240 * Math.min(f(v), 0.55)]);
    return path([[across(ends[0]), base], ...up, [across(ends[1]), base]], true);
  };
  const data = (v) => density(v, values), clip = (v) => Math.max(-5.1, Math.min(5.1, v)), shown = x.map(clip);
  const fan = Array.from({ length: 13 }, (_, k) => (k - 6) / 2).map((v) => [[across(v), top], [across(clip(inverseOf(v, values))), bottom - 140]]);
  const parts = [
    ...fan.map((line) => tag("path", { d: path(line), stroke: INK, "stroke-width": 0.5, fill: "none" })),
    tag("path", { d: filled(latent, top, z), fill: BLUE, "fill-opacity": 0.45 }),
    tag("path", { d: filled(data, bottom, shown), fill: ORANGE, "fill-opacity": 0.45 }),
    tag("path", { d: path(curve(latent, top, [-5, 5])), stroke: BLUE, "stroke-width": 2, fill: "none" }),
    tag("path", { d: path(curve(data, bottom, [-5, 5])), stroke: ORANGE, "stroke-width": 2, fill: "none" }),
    ...[top, bottom].map((y) => tag("path", { d: `M10 ${y}H630`, stroke: INK })),
    ...[-4, -2, 0, 2, 4].flatMap((v) => [top, bottom].map((y) => tag("text", { x: across(v), y: y + 16, fill: INK, "text-anchor": "middle" }, v))),
    tag("text", { x: 12, y: 24, fill: BLUE }, `latent z: length ${(z[1] - z[0]).toFixed(2)}, area ${inLatent.toFixed(3)}`),
    tag("text", { x: 12, y: 204, fill: ORANGE }, `data x: length ${(x[1] - x[0]).toFixed(2)}, area ${inData.toFixed(3)}`),
  ];
  return svg(640, 350, parts.join(""));
}

const CHANGE = [
  { name: "skew", label: "skew of the map", min: -1, max: 1, step: 0.05, value: 0.4 },
  { name: "tails", label: "stretch of the map", min: 0.5, max: 1.6, step: 0.05, value: 1.2 },
  { name: "centre", label: "centre of the interval, z", min: -2, max: 2, step: 0.05, value: 0.5 },
  { name: "width", label: "width of the interval, z", min: 0.1, max: 2, step: 0.05, value: 1 },
];

{
  const { figure, picture, text } = place("change");
  if (figure) {
    const draw = (values) => (picture.innerHTML = changePicture(values));
    draw(sliders(figure, CHANGE, draw));
    figure.append(text);
  }
}

if (typeof module !== "undefined") module.exports = { forwardOf, inverseOf, density, measured, changePicture, CHANGE };

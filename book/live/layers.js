// A trained flow of the plane, coupling by coupling: from Gaussian latents to two moons, at a temperature.
// RealNVP of the package: in turn one coordinate is kept, and says by how much the other is scaled and shifted.
"use strict";
if (typeof module !== "undefined") Object.assign(globalThis, require("./live.js"), require("./layers_data.js"));

const NETS = LAYERS_DATA.map((layers) => network(layers, (v) => Math.max(v, 0)));

// latent to data through the last `count` couplings: where z gets to, and log|det| of the way
function undone(z, count) {
  const x = [...z];
  let ladj = 0;
  for (let k = NETS.length - 1; k >= NETS.length - count; k--) {
    const kept = k % 2, [u, shift] = NETS[k]([x[kept]]), s = Math.tanh(u);
    x[1 - kept] = (x[1 - kept] - shift) * Math.exp(-s);
    ladj -= s;
  }
  return { x, ladj };
}

const LATENTS = (() => {
  const random = uniform(5);
  return Array.from({ length: 260 }, () => [normal(random), normal(random)]);
})();
const COLOURS = [BLUE, ORANGE, GREEN, "#a55aa5"]; // by the quarter of the plane in which a latent lies
const ring = (r) => Array.from({ length: 97 }, (_, k) => [r * Math.cos((k * Math.PI) / 48), r * Math.sin((k * Math.PI) / 48)]);

// left the latents, right the same points and circles after `count` couplings
function layersPicture({ count, heat }) {
  const onLeft = ([a, b]) => [155 + 48 * a, 175 - 48 * b], onRight = ([a, b]) => [480 + 60 * a, 175 - 60 * b];
  const line = (points) => tag("path", { d: path(points), stroke: INK, "stroke-width": 0.8, fill: "none" });
  const cooled = LATENTS.map((z) => z.map((v) => v * heat)), ends = cooled.map((z) => undone(z, count));
  const rings = [0.5, 1, 1.5, 2, 2.5].map((r) => ring(r * heat));
  const dots = (points) =>
    COLOURS.map((fill, quarter) => {
      const mine = points.filter((_, k) => (LATENTS[k][0] < 0 ? 1 : 0) + (LATENTS[k][1] < 0 ? 2 : 0) === quarter);
      return tag("g", { fill }, mine.map(([cx, cy]) => tag("circle", { cx, cy, r: 2.3 })).join(""));
    }).join("");
  const volume = ends.reduce((sum, { ladj }) => sum + ladj, 0) / ends.length;
  return svg(640, 350, [
    ...rings.map((points) => line(points.map(onLeft)) + line(points.map((z) => onRight(undone(z, count).x)))),
    dots(cooled.map(onLeft)), dots(ends.map(({ x }) => onRight(x))),
    tag("text", { x: 12, y: 20, fill: INK }, `latents at temperature ${heat}`),
    tag("text", { x: 330, y: 20, fill: INK }, `after ${count} of ${NETS.length} couplings`),
    tag("text", { x: 330, y: 340, fill: INK }, `mean log |det| so far: ${volume.toFixed(2)}`),
  ].join(""));
}

const LAYERS = [
  { name: "count", label: "couplings undone", min: 0, max: 8, step: 1, value: 8 },
  { name: "heat", label: "temperature", min: 0.1, max: 1.5, step: 0.05, value: 1 },
];

{
  const { figure, picture, text } = place("layers");
  if (figure) {
    const draw = (values) => (picture.innerHTML = layersPicture(values));
    draw(sliders(figure, LAYERS, draw));
    figure.append(text);
  }
}

if (typeof module !== "undefined") module.exports = { undone, layersPicture, LAYERS };

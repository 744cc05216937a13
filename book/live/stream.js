// Flow matching: noise follows a learned field of velocities to the data, in few Euler steps or many.
// Two fields of the package: learned from independent pairs, and from the pairs that the first one made (reflow).
"use strict";
if (typeof module !== "undefined") Object.assign(globalThis, require("./live.js"), require("./stream_data.js"));

const FIELDS = STREAM_DATA.map((layers) => network(layers, (v) => v / (1 + Math.exp(-v)))); // SiLU; reads (x, t)

// all places of one particle from t = 0 to t = 1 in equal Euler steps
function euler(field, x, steps) {
  const places = [x];
  for (let k = 0; k < steps; k++) {
    const u = field([...x, k / steps]);
    places.push((x = x.map((v, i) => v + u[i] / steps)));
  }
  return places;
}
// the end of a way by the midpoint rule, second order: what many steps would find
function accurate(field, x, steps = 25) {
  for (let k = 0; k < steps; k++) {
    const u = field([...x, k / steps]), half = x.map((v, i) => v + u[i] / steps / 2);
    const v = field([...half, (k + 0.5) / steps]);
    x = x.map((w, i) => w + v[i] / steps);
  }
  return x;
}

const NOISE = (() => {
  const random = uniform(3);
  return Array.from({ length: 120 }, () => [normal(random), normal(random)]);
})();
const ENDS = [], ERRORS = []; // of each field, when it is first asked for
const endsOf = (rounds) => (ENDS[rounds] ??= NOISE.map((x) => accurate(FIELDS[rounds], x)));
// root mean square distance from the accurate ends
function errorOf(rounds, ways) {
  const ends = endsOf(rounds), squares = ways.map((way, k) => way.at(-1).reduce((sum, v, i) => sum + (v - ends[k][i]) ** 2, 0));
  return Math.sqrt(squares.reduce((a, b) => a + b) / squares.length);
}
const KEPT = {}; // ways that were walked once
const waysOf = (rounds, steps) => (KEPT[`${rounds} ${steps}`] ??= NOISE.map((x) => euler(FIELDS[rounds], x, steps)));
const errorsOf = (rounds) => (ERRORS[rounds] ??= [1, 2, 4, 8, 16, 32].map((steps) => [steps, errorOf(rounds, waysOf(rounds, steps))]));

// left the ways so far and the particles, right the error of every number of steps
function streamPicture({ time, steps, rounds }) {
  const at = ([a, b]) => [180 + 58 * a, 172 - 58 * b];
  const ways = waysOf(rounds, steps), whole = Math.min(Math.floor(time * steps), steps - 1), rest = time * steps - whole;
  const now = ways.map((way) => way[whole].map((v, i) => v + rest * (way[whole + 1][i] - v)));
  const trails = ways.map((way, k) => path([...way.slice(0, whole + 1), now[k]].map(at))).join("");
  const dots = (points, fill, r) => tag("g", { fill }, points.map(at).map(([cx, cy]) => tag("circle", { cx, cy, r })).join(""));
  const across = (n) => 425 + 36 * Math.log2(n), up = (e) => 120 - 75 * Math.log10(Math.max(e, 0.0022));
  const colours = [ORANGE, GREEN], curve = (points) => path(points.map(([n, e]) => [across(n), up(e)]));
  const said = (x, y, fill, what, anchor = "start") => tag("text", { x, y, fill, "text-anchor": anchor }, what);
  const error = errorOf(rounds, ways);
  return svg(640, 350, [
    tag("path", { d: trails, stroke: colours[rounds], "stroke-width": 0.7, "stroke-opacity": 0.6, fill: "none" }),
    dots(NOISE, INK, 1.2), dots(now, BLUE, 2.8),
    said(12, 20, INK, `t = ${time.toFixed(2)}; ${steps} Euler step${steps > 1 ? "s" : ""}`),
    said(390, 20, INK, "distance from the exact end"),
    ...colours.map((stroke, k) => tag("path", { d: curve(errorsOf(k)), stroke, "stroke-width": 2, fill: "none" })),
    tag("circle", { cx: across(steps), cy: up(error), r: 6, fill: colours[rounds] }),
    ...[1, 4, 16].map((n) => said(across(n), 335, INK, n, "middle")), said(625, 335, INK, "steps", "end"),
    ...[1, 0.1, 0.01].map((e) => said(412, up(e) + 4, INK, e, "end") + tag("path", { d: `M418 ${up(e)}H625`, stroke: INK, "stroke-width": 0.3 })),
    said(430, 46, ORANGE, "independent pairs"), said(430, 66, GREEN, "after reflow"), said(430, 86, colours[rounds], `now ${error.toFixed(3)}`),
  ].join(""));
}

const STREAM = [
  { name: "time", label: "time t, noise to data", min: 0, max: 1, step: 0.02, value: 1 },
  { name: "steps", label: "Euler steps", min: 1, max: 32, step: 1, value: 8 },
  { name: "rounds", label: "rounds of reflow", min: 0, max: 1, step: 1, value: 0 },
];

{
  const { figure, picture, text } = place("stream");
  if (figure) {
    const draw = (values) => (picture.innerHTML = streamPicture(values));
    draw(sliders(figure, STREAM, draw));
    const time = figure.querySelector("input");
    const play = () => { // moves the slider of the time; never by itself
      time.value = Number(time.value) + 0.02;
      time.dispatchEvent(new Event("input"));
      if (time.value < 1) setTimeout(play, 40);
    };
    button(figure, "Play", () => ((time.value = 0), play()));
    figure.append(text);
  }
}

if (typeof module !== "undefined") module.exports = { euler, accurate, errorOf, waysOf, streamPicture, FIELDS, STREAM };

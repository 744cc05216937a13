// A threshold on a dense heat map: what is found, what is missed, what is a false alarm, on photographs that no training saw.
// Scores of the detector in the package on cells of 160 x 90, in 256 levels; photographs: see densegen/assets/CREDITS.md.
"use strict";
if (typeof module !== "undefined") Object.assign(globalThis, require("./live.js"), require("./threshold_data.js"));

const WIDE = 160, HIGH = 90, LOW = THRESHOLD_DATA.low, LEVEL = (THRESHOLD_DATA.high - LOW) / 255;
const PHOTOS = THRESHOLD_DATA.photos.map(({ name, by, jpeg, score, mask }) => {
  const bits = bytes(mask);
  return { name, by, jpeg, score: bytes(score), anomaly: Array.from({ length: WIDE * HIGH }, (_, k) => (bits[k >> 3] >> (7 - (k & 7))) & 1) };
});

// how many cells are over the threshold and not, of anomalies and of the rest
function counted({ score, anomaly }, threshold) {
  const found = { tp: 0, fp: 0, fn: 0, tn: 0 };
  score.forEach((s, k) => (found[LOW + LEVEL * s > threshold ? (anomaly[k] ? "tp" : "fp") : anomaly[k] ? "fn" : "tn"] += 1));
  return found;
}

// false alarms and finds at every level, from high to low: the curve; and the false alarms where 95 % are found
function curveOf(photo) {
  const hits = new Float64Array(256), falls = new Float64Array(256), points = [[0, 0]];
  photo.score.forEach((s, k) => ((photo.anomaly[k] ? hits : falls)[s] += 1));
  const all = hits.reduce((a, b) => a + b), rest = falls.reduce((a, b) => a + b);
  for (let s = 255, tp = 0, fp = 0; s >= 0; s--) points.push([(fp += falls[s]) / rest, (tp += hits[s]) / all]);
  return { points, fpr95: points.find(([, hit]) => hit >= 0.95)[0] };
}
PHOTOS.forEach((photo) => Object.assign(photo, curveOf(photo)));

// cells of one kind as one path of horizontal runs, in units of a cell
function runs(of) {
  let d = "";
  for (let y = 0; y < HIGH; y++)
    for (let x = 0, from = -1; x <= WIDE; x++) {
      const on = x < WIDE && of(y * WIDE + x);
      if (on && from < 0) from = x;
      if (!on && from >= 0) (d += `M${from} ${y}h${x - from}v1h${from - x}z`), (from = -1);
    }
  return d;
}

// the photograph with its cells coloured, and the place on its curve
function thresholdPicture({ threshold, photo }) {
  const at = PHOTOS[photo - 1], { tp, fp, fn, tn } = counted(at, threshold);
  const over = (k) => LOW + LEVEL * at.score[k] > threshold, share = (a, b) => (a + b ? (100 * a) / (a + b) : 0).toFixed(0);
  const kinds = [[GREEN, (k) => over(k) && at.anomaly[k]], [ORANGE, (k) => over(k) && !at.anomaly[k]], [BLUE, (k) => !over(k) && at.anomaly[k]]];
  const cells = kinds.map(([fill, of]) => tag("path", { d: runs(of), fill, "fill-opacity": 0.62 })).join("");
  const across = (v) => 478 + 150 * v, up = (v) => 190 - 150 * v, curve = path(at.points.map(([f, t]) => [across(f), up(t)]));
  const said = (x, y, fill, text) => tag("text", { x, y, fill }, text);
  return svg(640, 322, [
    tag("image", { href: `data:image/jpeg;base64,${at.jpeg}`, width: 440, height: 247.5 }),
    tag("g", { transform: "scale(2.75)" }, cells),
    said(4, 268, GREEN, `found ${share(tp, fn)} % (TP)`), said(4, 290, BLUE, `missed ${share(fn, tp)} % (FN)`),
    said(236, 268, ORANGE, `false alarms ${share(fp, tn)} % (FP)`), said(236, 290, INK, `precision ${share(tp, fp)} %`),
    tag("path", { d: `M478 40V190H628`, stroke: INK, fill: "none" }), tag("path", { d: `M478 ${up(0.95)}H628`, stroke: INK, "stroke-dasharray": "4 3" }),
    tag("path", { d: curve, stroke: GREEN, "stroke-width": 2, fill: "none" }),
    tag("circle", { cx: across(fp / (fp + tn)), cy: up(tp / (tp + fn)), r: 6, fill: ORANGE }),
    said(478, 28, GREEN, "found, %"), said(478, 210, ORANGE, "false alarms, %"), said(478, 234, INK, `FPR95 ${(100 * at.fpr95).toFixed(0)} %`),
    said(4, 314, INK, `photograph: ${at.by}`), said(478, 268, INK, `shipped alarm ${THRESHOLD_DATA.alarm.toFixed(1)}`),
  ].join(""));
}

const THRESHOLD = [
  { name: "threshold", label: "threshold of the score", min: Math.floor(LOW), max: Math.ceil(THRESHOLD_DATA.high), step: 0.1, value: -4.9 },
  { name: "photo", label: "photograph", min: 1, max: PHOTOS.length, step: 1, value: 1 },
];

{
  const { figure, picture, text } = place("threshold");
  if (figure) {
    const draw = (values) => (picture.innerHTML = thresholdPicture(values));
    draw(sliders(figure, THRESHOLD, draw));
    figure.append(text);
  }
}

if (typeof module !== "undefined") module.exports = { PHOTOS, LOW, LEVEL, counted, curveOf, thresholdPicture, THRESHOLD };

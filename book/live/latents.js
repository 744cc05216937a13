// Between two digits in the latents of a Glow, the coarse and the fine level apart; and between them in pixels.
// A picture for each pair and each of 5 x 5 mixtures, decoded by the package; a regression of the pixels reads them.
"use strict";
if (typeof module !== "undefined") Object.assign(globalThis, require("./live.js"), require("./latents_data.js"));

const PACKED = bytes(LATENTS_DATA.pictures), DIGITS = bytes(LATENTS_DATA.digits), SURE = bytes(LATENTS_DATA.sure);

// where the mixture of two digits is kept, with shares 0..4 of the second; pairs are in order, so (9, 1) is (1, 9) backwards
function indexOf(first, second, coarse, fine) {
  if (first > second) return indexOf(second, first, 4 - coarse, 4 - fine);
  const pair = first * 9 - (first * (first - 1)) / 2 + second - first - 1;
  return pair * 25 + coarse * 5 + fine;
}

// 64 greys, 0 to 1: of a mixture in the latents, and of a digit itself
const greys = (index) => Array.from({ length: 64 }, (_, k) => ((PACKED[index * 32 + (k >> 1)] >> (k % 2 ? 0 : 4)) & 15) / 15);
const digit = (label) => Array.from(DIGITS.subarray(64 * label, 64 * label + 64), (v) => (v + 0.5) / 17);

function mixture({ first, second, coarse, fine }) {
  if (first === second) return { picture: digit(first), said: "" };
  const index = indexOf(first, second, coarse, fine);
  return { picture: greys(index), said: `read as ${LATENTS_DATA.read[index]}, ${SURE[index]} % sure` };
}
const inPixels = ({ first, second, coarse, fine }) => digit(first).map((v, k) => v + ((coarse + fine) / 8) * (digit(second)[k] - v));

// a digit as 64 squares with its upper left corner at x, y
function squares(picture, x, y, side) {
  const cells = picture.map((v, k) => {
    const grey = Math.round(255 * v), at = `x="${x + (k % 8) * side}" y="${y + (k >> 3) * side}"`;
    return `<rect ${at} width="${side + 0.3}" height="${side + 0.3}" fill="rgb(${grey},${grey},${grey})"/>`;
  });
  return cells.join("");
}

function latentsPicture(values) {
  const { picture, said } = mixture(values), words = (x, y, text, fill = INK) => tag("text", { x, y, fill }, text);
  const small = [];
  for (let fine = 0; fine < 5; fine++)
    for (let coarse = 0; coarse < 5; coarse++) {
      const x = 440 + coarse * 39, y = 62 + fine * 39;
      small.push(squares(mixture({ ...values, coarse, fine }).picture, x, y, 4.5));
      if (coarse === values.coarse && fine === values.fine) small.push(tag("rect", { x, y, width: 36.5, height: 36.5, fill: "none", stroke: ORANGE, "stroke-width": 3 }));
    }
  return svg(640, 290, [
    squares(digit(values.first), 10, 40, 9), squares(digit(values.second), 10, 170, 9), words(10, 30, "from"), words(10, 160, "to"),
    squares(picture, 110, 62, 20), words(110, 30, "in latents", BLUE), words(110, 50, said, BLUE),
    squares(inPixels(values), 300, 62, 14), words(300, 30, "the same share"), words(300, 50, "in pixels"),
    words(440, 30, "right: coarse latents"), words(440, 50, "down: fine latents"), ...small,
  ].join(""));
}

const FAR = { min: 0, max: 4, step: 1, value: 2 };
const LATENTS_KNOBS = [
  { name: "first", label: "from the digit", min: 0, max: 9, step: 1, value: 3 },
  { name: "second", label: "to the digit", min: 0, max: 9, step: 1, value: 8 },
  { name: "coarse", label: "quarters, coarse latents", ...FAR },
  { name: "fine", label: "quarters, fine latents", ...FAR },
];

{
  const { figure, picture, text } = place("latents");
  if (figure) {
    const draw = (values) => (picture.innerHTML = latentsPicture(values));
    draw(sliders(figure, LATENTS_KNOBS, draw));
    figure.append(text);
  }
}

if (typeof module !== "undefined") module.exports = { indexOf, greys, digit, mixture, latentsPicture, LATENTS_KNOBS };

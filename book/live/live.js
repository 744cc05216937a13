// What the live figures share: sliders that a keyboard can move, and pictures as SVG text. Classic scripts, so that they
// work from a folder without a server; without scripts the picture that stands in the page remains.
"use strict";

const INK = "#7a7a7a", BLUE = "#1f83c4", ORANGE = "#c77c02", GREEN = "#0a8f68";

// one element as text: tag("circle", {r: 2}) is <circle r="2"/>
function tag(name, attributes, inside = "") {
  const said = Object.entries(attributes).map(([key, value]) => `${key}="${typeof value === "number" ? +value.toFixed(2) : value}"`);
  return `<${name} ${said.join(" ")}>${inside}</${name}>`;
}

function svg(width, height, inside) {
  const said = { xmlns: "http://www.w3.org/2000/svg", viewBox: `0 0 ${width} ${height}`, "font-family": "sans-serif", "font-size": 13 };
  return tag("svg", said, inside);
}

// a line through points [[x, y], ...]; `close` makes an area of it
const path = (points, close) => "M" + points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L") + (close ? "Z" : "");

// numbers between 0 and 1, the same for the same seed (mulberry32); a standard normal from two of them
function uniform(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
const normal = (random) => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());

// numbers that a figure carries along as base64: bytes, or float32
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const floats = (text) => new Float32Array(bytes(text).buffer);

// a network from its linear layers [[inputs, outputs, weights row by row and then biases], ...]: a vector to a vector
function network(layers, activation) {
  const read = layers.map(([inputs, outputs, text]) => [inputs, outputs, floats(text)]);
  return (x) => {
    read.forEach(([inputs, outputs, w], depth) => {
      const next = new Array(outputs);
      for (let o = 0; o < outputs; o++) {
        let sum = w[inputs * outputs + o];
        for (let i = 0; i < inputs; i++) sum += w[o * inputs + i] * x[i];
        next[o] = depth < read.length - 1 ? activation(sum) : sum;
      }
      x = next;
    });
    return x;
  };
}

// rows of a label, a native slider and its value; `changed` is called with all values whenever one moves
function sliders(figure, knobs, changed) {
  const values = {};
  for (const { name, label, min, max, step, value } of knobs) {
    const row = document.createElement("label");
    row.innerHTML = `<span>${label}</span><input type="range" min="${min}" max="${max}" step="${step}" value="${value}"><output>${value}</output>`;
    values[name] = value;
    row.children[1].addEventListener("input", (event) => {
      values[name] = Number(event.target.value);
      row.children[2].textContent = event.target.value;
      changed(values);
    });
    figure.append(row);
  }
  return values;
}

function button(figure, name, act) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: name });
  made.addEventListener("click", () => act(made));
  figure.append(made);
  return made;
}

// the figure of a name, emptied, with a place for its picture; nothing where the page has none
function place(name) {
  const figure = typeof document === "undefined" ? null : document.getElementById(`live-${name}`);
  if (!figure) return {};
  const text = figure.querySelector(":scope > p"), still = figure.querySelector("img"), picture = document.createElement("div");
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", still.alt);
  figure.replaceChildren(picture);
  return { figure, picture, text };
}

if (typeof module !== "undefined") module.exports = { tag, svg, path, uniform, normal, bytes, floats, network, sliders, button, place, INK, BLUE, ORANGE, GREEN };

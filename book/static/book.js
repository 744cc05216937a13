// Small helps: the list on the left opens at the page that one reads; excerpts of a search show no TeX.
"use strict";

const GREEK = "alpha α beta β gamma γ delta δ epsilon ε varepsilon ε zeta ζ eta η theta θ kappa κ lambda λ mu μ nu ν xi ξ pi π rho ρ sigma σ tau τ phi φ varphi φ chi χ psi ψ omega ω Gamma Γ Delta Δ Theta Θ Lambda Λ Sigma Σ Phi Φ Psi Ψ Omega Ω nabla ∇ partial ∂ int ∫ sum Σ prod Π infty ∞ cdot · times × approx ≈ le ≤ leq ≤ ge ≥ geq ≥ neq ≠ to → mapsto ↦ sim ~ in ∈ pm ± ll ≪ gg ≫ dots … ldots … cdots … mid | lvert | rvert | lVert ‖ rVert ‖ odot ⊙ circ ∘".split(" ");
const SIGN = new Map(GREEK.flatMap((name, k) => (k % 2 ? [] : [[name, GREEK[k + 1]]])));

// a formula as one would type it
function plainFormula(tex) {
  return tex
    .replace(/\\(?:text|mathrm|mathbf|mathcal|mathbb|operatorname|boldsymbol|bar|hat|tilde|sqrt)\b\s*/g, "")
    .replace(/\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}/g, "$1/$2")
    .replace(/\\begin\{\w+\*?\}|\\end\{\w+\*?\}|\\(?:left|right|big|Big|quad|qquad)\b/g, " ")
    .replace(/\\([A-Za-z]+)/g, (_, name) => SIGN.get(name) ?? name)
    .replace(/\\./g, " ")
    .replace(/[{}&$]/g, "")
    .replace(/\s+/g, " ")
    .trim();
}

function plainText(text) {
  const inline = text.replace(/\\\(([\s\S]*?)\\\)/g, (_, tex) => plainFormula(tex));
  return inline.replace(/\\\[([\s\S]*?)\\\]/g, (_, tex) => plainFormula(tex));
}

if (typeof Search !== "undefined") {
  const whole = Search.htmlToText;
  Search.htmlToText = (html, anchor) => plainText(whole(html.replace(/<span class="aside".*?<\/span>/gs, ""), anchor));
}

// what an address points at is opened, if it is folded
function unfold() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target) target.querySelectorAll("details").forEach((part) => (part.open = true));
}

// a table, formula or drawing that is wider than its place can be scrolled by keyboard, too; code always can
function reachable() {
  for (const wide of document.querySelectorAll("article :is(table, .table-wrapper, mjx-container[display], .cell_output .output)"))
    if (wide.scrollWidth > wide.clientWidth + 1) wide.tabIndex = 0;
}

// the parts of the list on the left fold; the one that is read stands open
function foldParts() {
  for (const text of document.querySelectorAll(".sidebar-tree .caption-text")) {
    const list = text.parentElement.nextElementSibling, button = document.createElement("button");
    const show = (open) => ((list.hidden = !open), button.setAttribute("aria-expanded", open));
    button.type = "button";
    button.append(...text.childNodes);
    button.addEventListener("click", () => show(list.hidden));
    text.append(button);
    show(list.querySelector(".current-page") !== null);
  }
}

if (typeof document !== "undefined") {
  unfold();
  foldParts();
  window.addEventListener("load", () => [0, 1000].forEach((wait) => setTimeout(reachable, wait))); // formulas come late
  window.addEventListener("resize", reachable);
  window.addEventListener("hashchange", unfold);
  const here = document.querySelector(".sidebar-tree .current-page");
  const list = document.querySelector(".sidebar-scroll");
  if (here && list) list.scrollTop = here.offsetTop - list.clientHeight / 3;
}
if (typeof module !== "undefined") module.exports = { plainFormula, plainText };

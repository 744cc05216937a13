// What is wrong with the page that is open, one line for each fault; tests/book/test_browser.py reads them.
() => {
  const wrong = [], root = document.documentElement;
  const name = (e) => [e.tagName.toLowerCase(), e.id && `#${e.id}`, ...[...e.classList].map((c) => `.${c}`)].join("");
  const said = (e) => `${name(e)} "${e.textContent.trim().slice(0, 50)}"`;

  // sideways: the innermost element that reaches beyond the window and lies in no box that scrolls by itself
  const held = (e) => {
    for (let box = e.parentElement; box && box !== document.body; box = box.parentElement) {
      const style = getComputedStyle(box);
      if (style.overflowX !== "visible" || style.position === "fixed") return true;
    }
    return getComputedStyle(e).position === "fixed";
  };
  if (root.scrollWidth > root.clientWidth) {
    const beyond = (e) => e.getBoundingClientRect().right > root.clientWidth + 1 && !held(e);
    const out = [...document.body.querySelectorAll("*")].filter(beyond);
    const inner = out.filter((e) => ![...e.children].some((child) => out.includes(child)));
    const most = root.scrollWidth - root.clientWidth;
    wrong.push(`sideways by ${most} px at ${innerWidth}: ${inner.slice(0, 3).map(said).join(", ") || "the page itself"}`);
  }

  // mathematics: each formula set, none with an error
  const formulas = [...document.querySelectorAll(".math")].filter((e) => /\\[([]/.test(e.textContent) || e.querySelector("mjx-container"));
  const raw = formulas.filter((e) => !e.querySelector("mjx-container"));
  if (raw.length) wrong.push(`${raw.length} formulas not set: ${raw[0].textContent.trim().slice(0, 60)}`);
  for (const e of document.querySelectorAll("mjx-merror")) wrong.push(`formula with an error: ${e.getAttribute("data-mjx-error")}`);
  for (const e of document.querySelectorAll('mjx-mtext[style*="color: red"]')) wrong.push(`command unknown to MathJax: ${e.textContent}`);
  const left = /\$\$|\\(begin|frac|mathbf|mathcal|sum|log|theta|partial)\b|(?<![\\\w$])\$[^$\n]*[\\^_][^$\n]*\$/;
  for (const e of document.querySelectorAll("article :is(p, li, td, th, h1, h2, h3, figcaption)")) {
    const text = [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data).join(" ");
    if (left.test(text)) wrong.push(`TeX as text: ${said(e)}`);
  }

  // anchors of this page, and pictures
  for (const a of document.querySelectorAll('a[href^="#"]')) {
    const anchor = decodeURIComponent(a.getAttribute("href").slice(1));
    if (anchor && !document.getElementById(anchor)) wrong.push(`dead anchor: #${anchor}`);
  }
  for (const image of document.images) {
    const alt = image.getAttribute("alt") ?? "", words = alt.trim().split(/\s+/).length;
    if (words < 3 || /\.(png|svg|webp|jpe?g)$/i.test(alt)) wrong.push(`no real alt text: ${image.src.slice(-60)} "${alt}"`);
    if (!image.complete || !image.naturalWidth) wrong.push(`picture does not show: ${image.src.slice(-60)}`);
  }
  return wrong;
}

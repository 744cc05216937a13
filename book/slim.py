"""What no reader needs is left out: spans without a colour, pixels stored wastefully, unused mathematics."""

import importlib.util
import re
import shutil
from pathlib import Path

from PIL import Image
from pygments.styles import get_style_by_name
from pygments.token import STANDARD_TYPES, Token

SPAN = re.compile(r'<span class="(\w+)">([^<]*)</span>')


def colourless(*styles: str) -> set[str]:
    "Short names of the tokens that look like plain text in all of the styles."
    plain = set(STANDARD_TYPES.values()) - {""}
    for style in map(get_style_by_name, styles):
        own = style.style_for_token(Token.Name)
        plain &= {short for token, short in STANDARD_TYPES.items() if style.style_for_token(token) == own}
    return plain | {"w", "o", "pre"}  # space, operators, and Sphinx's own


def slim(body: str, plain: set[str]) -> str:
    "The page with fewer spans; its code can be scrolled by keyboard, pictures load when they come into sight."
    for _ in range(2):  # spans may lie in spans
        body = SPAN.sub(lambda m: m[2] if m[1] in plain else m[0], body)
    body = re.sub(r"<pre(?=[ >])", '<pre tabindex="0"', body.replace("<pre><span></span>", "<pre>"))
    body = re.sub(r'(_images/[\w.-]+)\.(?:png|jpg)"', r'\1.webp"', body)
    return body.replace("<img ", '<img loading="lazy" ')


def tight(page: str) -> str:
    "A whole page without the indentation of its template and with short entries of the sidebar; code stays as it is."
    page = page.replace('<li class="toctree-l1"><a class="reference internal"', "<li><a")
    page = re.sub(r'<div class="(cell(?:_\w+)?(?: [\w-]+)*) docutils container"', r'<div class="\1 container"', page)
    page = re.sub(r' xmlns="http://www.w3.org/2000/svg"|\s?class="(?:feather|icon)-[\w-]+"', "", page)
    drawn = lambda m: m[0] if f'href="#{m[1]}"' in page else ""  # of the theme's icons
    page = re.sub(r'<symbol id="([\w-]+)".*?</symbol>', drawn, page, flags=re.S)
    parts = re.split(r"(<pre.*?</pre>|<script.*?</script>)", page, flags=re.S)
    return "".join(part if k % 2 else re.sub(r"\s*\n\s*", "\n", part) for k, part in enumerate(parts))


def plain_links(css: str) -> str:
    "The theme's style for entries of the sidebar that bear no class."
    return re.sub(r"(\.sidebar-tree [^{},]*?)\.reference", r"\1:any-link", css)


def smaller(folder: Path) -> set[str]:
    "Each picture of a folder as WebP, small and without a loss that one sees; the names of the line drawings."
    drawings = set()
    for path in sorted([*folder.glob("*.png"), *folder.glob("*.jpg")]):
        target = path.with_suffix(".webp")
        with Image.open(path) as image:
            image = image.convert("RGBA")
            if is_drawing(image):
                drawings.add(target.name)
                image = image.quantize(256, method=Image.Quantize.FASTOCTREE).convert("RGBA")
            image.save(target, lossless=True, method=2)
            if target.stat().st_size > 15_000 and target.name not in drawings:
                image.save(target, quality=66, method=5)
        path.unlink()
    return drawings


def is_drawing(image: Image.Image) -> bool:
    "Whether four fifths of it are empty, as in plots of curves and points: transparent, or white."
    ground = Image.new("RGBA", image.size, "white")
    grey = Image.alpha_composite(ground, image).convert("L").histogram()
    return sum(grey[249:]) > 0.8 * sum(grey)


def dimmed(page: str, drawings: set[str]) -> str:
    "The page with a class for drawings that the dark theme may turn over: all whose text says nothing of light and dark."
    def one(image):
        told = f"{image[0]} {page[image.end() : page.find('</p>', image.end())]}"
        free = image[1] in drawings and not re.search(r"\b(white|black|dark|pale|light|bright)", told, re.I)
        return image[0].replace("<img ", '<img class="drawing" ') if free else image[0]
    return re.sub(r'<img [^>]*?_images/([\w.-]+)"[^>]*>', one, page)


def mathematics(target: Path) -> None:
    "MathJax from its package: one script, its fonts, and the extensions that it may ask for; no menus, no speech."
    package = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
    found = (package.glob(pattern) for pattern in ("output/chtml/fonts/woff-v2/*", "input/tex/extensions/*.js"))
    wanted = [package / "tex-chtml.js", *(path for paths in found for path in paths)]
    unused = {"all-packages", "mhchem", "physics", "bussproofs", "mathtools", "empheq"}  # chemistry, proofs, short forms
    for path in wanted:
        if path.stem not in unused:
            copy = target / path.relative_to(package)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)

"""What no reader needs is left out: spans without a colour, pixels stored wastefully, unused mathematics."""

import importlib.util
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter
from pygments.styles import get_style_by_name
from pygments.token import STANDARD_TYPES, Token

PROSE = 640  # width of the lines of prose, px
INK, DARKER = 122, 64  # grey of axes and words in the notebooks (COLOURS["grey"]), and in the book
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
    page = re.sub(r'<span class="(\w+)">', r"<span class=\1>", page)  # a hundred thousand tokens of code
    page = re.sub(r' xmlns="http://www.w3.org/2000/svg"|\s?class="(?:feather|icon)-[\w-]+"', "", page)
    drawn = lambda m: m[0] if f'href="#{m[1]}"' in page else ""  # of the theme's icons
    page = re.sub(r'<symbol id="([\w-]+)".*?</symbol>', drawn, page, flags=re.S)
    parts = re.split(r"(<pre.*?</pre>|<script.*?</script>)", page, flags=re.S)
    return "".join(part if k % 2 else re.sub(r"\s*\n\s*", "\n", part) for k, part in enumerate(parts))


def plain_links(css: str) -> str:
    "The theme's style for entries of the sidebar that bear no class."
    return re.sub(r"(\.sidebar-tree [^{},]*?)\.reference", r"\1:any-link", css)


class Picture(NamedTuple):
    width: int  # pixels
    height: int
    drawing: bool  # of curves and points on an empty ground


def smaller(folder: Path) -> dict[str, Picture]:
    "Each picture of a folder as WebP, small and without a loss that one sees; what they are, by name."
    pictures = {}
    for path in sorted([*folder.glob("*.png"), *folder.glob("*.jpg")]):
        target = path.with_suffix(".webp")
        with Image.open(path) as image:
            image = inked(image.convert("RGBA"))
            pictures[target.name] = Picture(*image.size, is_drawing(image))
            if pictures[target.name].drawing:
                image = image.quantize(256, method=Image.Quantize.FASTOCTREE).convert("RGBA")
            image.save(target, lossless=True, method=2)
            if target.stat().st_size > 15_000 and not pictures[target.name].drawing:
                image.save(target, quality=66, method=5)
        path.unlink()
    return pictures


def inked(image: Image.Image) -> Image.Image:
    """Axes and words of a plot in darker ink: the notebooks' grey has to do for both papers, the book's dark theme turns drawings over.

    Ink is what has that grey and lies on, or within three pixels of, a transparent ground."""
    pixels = np.array(image)
    alpha = image.getchannel("A")
    ground = np.asarray(alpha.filter(ImageFilter.MinFilter(7))) < 255
    colour = pixels[..., :3].astype(int)
    grey = (abs(colour - INK).max(-1) <= 4) & (pixels[..., 3] > 0) & ground
    pixels[grey, :3] = DARKER
    return Image.fromarray(pixels)


def is_drawing(image: Image.Image) -> bool:
    "Whether four fifths of it are empty, as in plots of curves and points: transparent, or white."
    ground = Image.new("RGBA", image.size, "white")
    grey = Image.alpha_composite(ground, image).convert("L").histogram()
    return sum(grey[249:]) > 0.8 * sum(grey)


def shown(page: str, pictures: dict[str, Picture]) -> str:
    """The page with the size of each picture, so that nothing moves when it comes, and with classes for drawings.

    The dark theme may turn drawings over whose text says nothing of light and dark; on a phone wide ones scroll.
    The caption of a small picture may stand beside it."""
    def one(image):
        if (picture := pictures.get(image[1])) is None:
            return image[0]
        told = f"{image[0]} {page[image.end() : page.find('</p>', image.end())]}"
        free = picture.drawing and not re.search(r"\b(white|black|dark|pale|light|bright)", told, re.I)
        size = "" if "width=" in image[0] or "width:" in image[0] else f'width="{picture.width}" height="{picture.height}" '
        narrow = picture.width <= PROSE
        kinds = ["drawing"] * bool(free) + ["small"] * narrow + ["wide"] * (picture.drawing and not narrow)
        kind = f'class="{" ".join(kinds)}" ' if kinds else ""
        return image[0].replace("<img ", f"<img {size}{kind}")
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

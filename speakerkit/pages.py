"""Web pages that stand alone: one HTML file, in the light, in the dark or on paper, without network."""

from __future__ import annotations

import base64
import hashlib
import os
import platform
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

from speakerkit import __version__
from speakerkit.errors import one_line
from speakerkit.files import atomic_open

DRAWING = "{http://www.w3.org/2000/svg}"
# Colours of the plots that are others on a dark page.
THEMED = {"#333333": "var(--ink)", "#000000": "var(--ink)", "#ffffff": "var(--paper)", "#e3e3e3": "var(--line)"}
STYLE = """
:root{color-scheme:light dark;--ink:#22272c;--soft:#58616a;--paper:#ffffff;--line:#dfe3e6;--link:#0b57a4}
@media (prefers-color-scheme:dark){
:root{--ink:#e4e7ea;--soft:#a3acb5;--paper:#14181c;--line:#343b42;--link:#8cc4ff}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1.5rem 1rem 4rem;font:1rem/1.5 system-ui,sans-serif;
color:var(--ink);background:var(--paper)}
h1,h2,h3{line-height:1.2;margin:2.2rem 0 .6rem}
h1{margin-top:0;overflow-wrap:anywhere}
p,dl,ul{max-width:46rem}
.summary{font-size:1.1rem}
.note,figcaption,small,caption{color:var(--soft)}
a{color:var(--link)}
.wide{overflow-x:auto}
table{border-collapse:collapse;margin:.5rem 0 1rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding-bottom:.4rem}
th,td{padding:.45rem .9rem .45rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
tbody+tbody{border-top:2px solid var(--soft)}
.figures td,.figures thead th+th{text-align:right}
audio{display:block;width:min(20rem,100%);height:2.2rem;margin-top:.3rem}
svg{display:block;width:100%;height:auto}
dt{font-weight:600;margin-top:.5rem}
dd{margin:0}
code{overflow-wrap:anywhere}
@media print{
:root{color-scheme:light;--ink:#000000;--soft:#444444;--paper:#ffffff;--line:#cccccc;--link:#000000}
body{max-width:none;padding:0;font-size:10pt}
audio{display:none}
.wide{overflow:visible}
figure,tr{break-inside:avoid}
h2,h3,caption{break-after:avoid}}
"""


def as_html(value: object) -> str:
    """Any text as it may stand in HTML, on one line, quoted attributes included."""
    return escape(one_line(str(value)))


def file_link(path: str | Path, folder: Path) -> str:
    """Address of a local file, not yet escaped: a whole one for a whole path, else from the page's ``folder``."""
    return Path(path).as_uri() if os.path.isabs(path) else quote(Path(os.path.relpath(path, folder)).as_posix())


def data_address(kind: str, content: bytes) -> str:
    """Address that holds ``content`` itself, of the MIME type ``kind``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def provenance(rows: Mapping[str, str], packages: Iterable[str]) -> str:
    """The page's last part: ``rows`` on how it was made, and versions of what it was made with."""
    versions = {"speakerkit": __version__, "Python": platform.python_version()}
    versions |= {package: version(package) for package in packages}
    listed = {**rows, "Versions": ", ".join(f"{name} {number}" for name, number in versions.items())}
    pairs = ((as_html(what), as_html(value)) for what, value in listed.items())
    lines = "".join(f"<dt>{what}</dt><dd><code>{value}</code></dd>\n" for what, value in pairs)
    return f"<h2>How this was made</h2>\n<dl>\n{lines}</dl>"


def write_page(path: str | Path, title: str, parts: Iterable[str], *, style: str = "", script: str = "") -> None:
    """Write the page, atomically.

    Args:
        path: HTML file.
        title: heading and name of the page, as plain text.
        parts: HTML below the heading; empty ones are left out.
        style: CSS beside :data:`STYLE`.
        script: run when the page is loaded. Nothing else on the page runs, should text of a list ever get through as a
            script, and nothing is fetched but sound.
    """
    heading = as_html(title)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"'sha256-{digest}'" if script else "'none'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "media-src 'self' file: data:; "
        "base-uri 'none'; form-action 'none'"
    )
    with atomic_open(path) as stream:
        stream.write(
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            f"<title>{heading}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n<main>\n<h1>{heading}</h1>\n"
        )
        stream.writelines(f"{part}\n" for part in parts if part)
        stream.write("</main>\n")
        if script:
            stream.write(f"<script>{script}</script>\n")
        stream.write("</body>\n</html>\n")


def inline_svg(svg: str, prefix: str, label: str) -> str:
    """A picture of matplotlib's as part of an HTML page: small, in the page's colours, with ids of its own.

    Args:
        svg: the file's text.
        prefix: in front of its ids, which must differ among the pictures of a page.
        label: what is read out in place of the picture.
    """
    root = ElementTree.fromstring(svg)  # noqa: S314 - we have just drawn it; comments, which hold names, are dropped
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in (f"{DRAWING}metadata", f"{DRAWING}style")]:
            parent.remove(child)
    used = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", svg))
    for element in root.iter():
        element.tag = element.tag.removeprefix(DRAWING)
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib = {
            name: _attribute(name, value, prefix) for name, value in attributes.items() if name != "id" or value in used
        }
    box = root.attrib["viewBox"]
    root.attrib = {"viewBox": box, "role": "img", "aria-label": one_line(label)}
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return prefix + value
    if name == "d":  # a hundredth of a point is not seen
        return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", value)
    if name == "style":
        value = re.sub(r"#[0-9a-f]{6}", lambda colour: THEMED.get(colour[0], colour[0]), value)
    return re.sub(r"^#|(?<=url\()#", f"#{prefix}", value) if name in ("href", "clip-path") else value

"""Sphinx: pages in Markdown, reference by autodoc; needs no network."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.util.inspect import TypeAliasForwardRef

import latentdiff

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "latentdiff"
author = "latentdiff contributors"
copyright = "2026, latentdiff contributors"
version = release = latentdiff.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode", "myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    # other projects': no network
    (r"py:.*", r"(torch|collections|typing|typing_extensions|numpy|os|pathlib|hypothesis|st)\b.*"),
    (r"py:class", r"dict\[str"),  # what is left of a field with a default factory
    (r"py:.*", r"Tensor|Frame|[A-Z]|latentdiff\..*\._\w+|latentdiff\..*\.[A-Z]"),  # short; private; a type variable
]

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"latentdiff {release}"

autoclass_content = "both"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "special-members": "__call__"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_type_aliases = {
    name: f"latentdiff._typing.{name}"
    for name in ("Images", "Latents", "Tokens", "Times", "JSON", "Prediction", "SpatialDims", "Generator")
}
autodoc_type_aliases |= {
    "Network": "latentdiff._denoiser.Network",
    "Posterior": "latentdiff._distributions.Posterior",
    "Variance": "latentdiff._denoiser.Variance",
}
autodoc_type_aliases |= {
    "Scale": "latentdiff.guidance._base.Scale",
    "LogProb": "latentdiff.guidance._classifier.LogProb",
}
TypeAliasForwardRef.__repr__ = lambda alias: alias.name  # type: ignore[method-assign] # shown as it is in `Alias | None`
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False


# Docstrings hold `code`, \( formulas \), \[ displayed ones \] and tables in Markdown; Sphinx wants reStructuredText.

INLINE = re.compile(r"``.+?``|`(?P<code>[^`]+)`|\\\((?P<math>.+?)\\\)|\\\[(?P<display>.+?)\\\]", re.DOTALL)


def to_restructured_text(lines: list[str]) -> list[str]:
    """A docstring's lines with inline markup and tables translated; doctests stay as they are."""
    paragraphs: list[str] = []
    for paragraph in re.split(r"\n(?=\s*\n)", "\n".join(lines)):
        first = paragraph.lstrip()
        if first.startswith("|"):
            paragraph = table(paragraph)
        elif not first.startswith(">>>"):
            paragraph = INLINE.sub(inline, paragraph)
        paragraphs.append(paragraph)
    return "\n".join(paragraphs).split("\n")


def inline(found: re.Match[str]) -> str:
    """One piece of code or mathematics; what is broken over two lines is joined."""
    if (code := found["code"]) is not None:
        return f"``{' '.join(code.split())}``"
    if (formula := found["math"]) is not None:
        return f":math:`{' '.join(formula.split())}`"
    if (formula := found["display"]) is not None:
        line = found.string.rfind("\n", 0, found.start()) + 1
        margin = re.match(r"[ \t]*", found.string[line:])
        indent = margin[0] if margin else ""
        return f"\n\n{indent}.. math::\n\n{indent}   {' '.join(formula.split())}\n\n{indent}"
    return found[0]


def table(text: str) -> str:
    """A Markdown table as a list table."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.strip().splitlines()]
    indent = re.match(r"\s*?([ \t]*)\|", text)
    margin = indent[1] if indent else ""
    listed = [".. list-table::", "   :header-rows: 1", ""]
    for row in [rows[0], *rows[2:]]:
        cells = [INLINE.sub(inline, cell) for cell in row]
        listed += [f"   {'* -' if column == 0 else '  -'} {cell}" for column, cell in enumerate(cells)]
    return "\n" + "\n".join(margin + line for line in listed)


def translate_docstring(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    translated = to_restructured_text(lines)
    if what in {"attribute", "data", "property"}:
        # Napoleon would take what stands before a colon for a type; an empty word before it keeps it from looking.
        translated.insert(0, "\\ ")
    lines[:] = translated


def resolve_public_name(app: Sphinx, env: Any, node: Any, contnode: nodes.Element) -> nodes.Element | None:
    """Annotations name where a class is defined (`latentdiff._unet.UNet`); the reference has `latentdiff.UNet`."""
    target = node.get("reftarget", "")
    if not target.startswith("latentdiff."):
        return None
    domain, name = env.get_domain("py"), target.rsplit(".", 1)[-1]
    for space in ("", "solvers.", "guidance.", "losses.", "training.", "evaluation.", "testing.", "_typing."):
        if (public := f"latentdiff.{space}{name}") in domain.objects:
            found: nodes.Element | None = domain.resolve_xref(
                env, node["refdoc"], app.builder, "obj", public, node, contnode
            )
            return found
    return None


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", translate_docstring, priority=400)  # before napoleon
    app.connect("missing-reference", resolve_public_name)

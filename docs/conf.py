"""The site: ``make docs`` builds it into build/docs. Its sources are the Markdown files; the scripts draw figures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.osutil import relative_uri
from sphinx.writers.html5 import HTML5Translator

import sppbench.spp
from sppbench.files import config_directory
from sppbench.run.help_text import groups

project = "sppbench"
author = "The sppbench authors"
copyright = author

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "sppbench"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_math_renderer = "mathml"
smartquotes_action = "qe"  # not of dashes: --help is an option
default_role = "literal"  # single backticks in docstrings, as in Markdown

autodoc_member_order = "bysource"
autodoc_mock_imports = [] if find_spec("transformers") else ["transformers"]
napoleon_numpy_docstring = False
napoleon_preprocess_types = False
napoleon_use_ivar = True
maximum_signature_line_length = 88

# Types of other libraries: their sites would have to be asked. Names of our own must resolve, but for types that no
# page of the reference has.
nitpick_ignore_regex = [("py:.*", r"(?!sppbench\.).*")]
nitpick_ignore = [
    ("py:class", f"sppbench.spp.{name}")
    for name in (
        "probe.readings.Readings",
        "comparison.pairing.Cell",
        "comparison.pairing.Pairing",
        "comparison.yardsticks.Differences",
    )
]

# Prompts are not part of what is copied.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

PUBLIC = {name: f"sppbench.spp.{name}" for name in sppbench.spp.__all__}
COLUMNS = "90"  # of the terminal for which help texts are wrapped


class CommandHelp(SphinxDirective):
    """What a command of sppbench answers to ``--help``, asked for while the site is built.

    ````
    ```{command-help} table
    ```
    ````
    """

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        command = [sys.executable, "-m", "sppbench", *self.arguments, "--help"]
        environment = {**os.environ, "COLUMNS": COLUMNS, "NO_COLOR": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return [nodes.literal_block(done.stdout, done.stdout.rstrip(), language="text", classes=["columns"])]


class ConfigurationGroups(SphinxDirective):
    """The groups of the configuration and their choices, each with the first sentence of its file."""

    def run(self) -> list[nodes.Node]:
        text = "\n".join(groups(config_directory()))
        return [nodes.literal_block(text, text, language="text", classes=["columns"])]


def write_formula(translator: HTML5Translator, node: nodes.Element) -> None:
    """As MathML, which browsers show without a script: MathJax would have to be loaded from elsewhere."""
    formula = tex2mathml(node.astext())
    if isinstance(node, nodes.math_block):
        formula = '<div class="math">' + formula.replace("<math ", '<math display="block" ', 1) + "</div>"
    translator.body.append(formula)
    raise nodes.SkipNode


def link_figures(app: Sphinx, page: nodes.document, name: str) -> None:
    """Each figure leads to its file, in which small labels can be read."""
    files = relative_uri(app.builder.get_target_uri(name), app.builder.imagedir)
    for image in list(page.findall(nodes.image)):
        _, file = app.env.images[image["uri"]]
        link = nodes.reference("", "", image.deepcopy(), refuri=f"{files}/{file}", internal=True)
        image.replace_self(link)


def leave_out_catch_alls(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """A module without arguments of its own shows those of ``nn.Module.__init__``, which takes none either."""
    return re.sub(r"^\(\*args[^,]*, \*\*kwargs[^,]*\)$", "()", signature or "") or None, returns


def render_backticks(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Names in single backticks: a link where the name is public, else code, as in Markdown."""

    def rendered(found: re.Match[str]) -> str:
        text = found[1]
        return f":py:obj:`~{PUBLIC[text]}`" if text in PUBLIC else f"``{text}``"

    rules = [number for number, line in enumerate(lines) if line.lstrip().startswith("===")]
    for number, line in enumerate(lines):
        if rules and rules[0] < number < rules[-1]:
            continue  # in a table, whose columns must keep their widths
        lines[number] = re.sub(r"(?<![`:\w])`([^`<>]+)`(?![`_])", rendered, line)


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
    app.add_directive("command-help", CommandHelp)
    app.add_directive("configuration-groups", ConfigurationGroups)
    app.connect("doctree-resolved", link_figures)
    app.connect("autodoc-process-signature", leave_out_catch_alls)
    app.connect("autodoc-process-docstring", render_backticks)

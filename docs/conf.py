"""How Sphinx builds these pages: ``make docs``. The pages are Markdown and read well without it."""

project = "pytest-statepersist"
author = "The pytest-statepersist developers"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "pytest-statepersist"

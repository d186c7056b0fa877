"""Have `dvc plots show` write a page that needs no network: DVC's own loads the scripts that draw from elsewhere.

`python -m flows.plots_page`, which `make setup` runs, writes the scripts of Vega into a template, .dvc/plots.html, and
names it in .dvc/config.local. Git ignores both: the template is some 900 kB.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ddpm.errors import UserError
from ddpm.files import atomic_file

TEMPLATE = Path(".dvc/plots.html")
VEGA_LITE = "5.21"  # DVC's charts are written for version 5

# DVC replaces the two names in braces. `{scripts}`, the third that it knows, is where its own scripts would be.
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>DVC plots</title>
{refresh_tag}
<style>table { border-spacing: 15px }</style>
<script>%s</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def write_template(root: Path = Path()) -> Path:
    """Write the template and have DVC use it in this project.

    Raises:
        UserError: the folder has no .dvc, or DVC does not take the setting.
    """
    from vl_convert import javascript_bundle

    path = root / TEMPLATE
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder; `python -m flows.plots_page` is for a project of DVC")
    with atomic_file(path) as temporary:
        temporary.write_text(
            _PAGE % javascript_bundle("window.vegaEmbed = vegaEmbed", vl_version=VEGA_LITE), encoding="utf-8"
        )
    setting = ["config", "--local", "plots.html_template", path.name]  # relative to .dvc, so the project can move
    done = subprocess.run([sys.executable, "-m", "dvc", *setting], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"dvc {' '.join(setting)}: {done.stderr.strip()}")
    return path


def main() -> int:
    try:
        write_template()
    except UserError as error:
        print(f"plots_page: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`make demo-latent`: as `make demo-text`, in the latents of an autoencoder, in the project `.demo-latent/`.

The autoencoder's figures and its reconstructions are in `reports/autoencoder-emoji/`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from flows import demo_text

FOLDER = Path(".demo-latent")
AUTOENCODER, MODEL = "autoencoder-emoji", "latent-emoji"

# What the demo's params.yaml has in place of this repository's.
DEMO: dict[str, Any] = demo_text.DEMO | {
    "autoencoders": [AUTOENCODER],
    "latents": {MODEL: AUTOENCODER},
    "cascades": {},
    "unclips": {},
}


def main() -> int:
    return demo_text.run(DEMO, FOLDER, MODEL)


if __name__ == "__main__":
    sys.exit(main())

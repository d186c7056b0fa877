"""What is claimed of guidance, as inequalities between figures of its settings.

Ho & Salimans 2022, tables 1 and 2; Dhariwal & Nichol 2021, table 4; Kynkäänniemi et al. 2024, table 1; Karras et al.
2024, table 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bench.claims import Claim, Comparison, Estimate, below

SMALL = 1.5  # what is called a small guidance scale is at most so much

# What guides: a conditional model is guided by itself without its condition, or by a weaker model; an unconditional
# model by a classifier.
ITSELF, CLASSIFIER, WEAKER = "itself", "classifier", "weaker model"


class Setting(NamedTuple):
    """How a model is guided."""

    guide: str
    scale: float
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        where = "" if self.interval is None else f" in [{self.interval[0]:g}, {self.interval[1]:g}]"
        return f"scale {self.scale:g}{where}"

    @property
    def overrides(self) -> dict[str, Any]:
        """As `Model.plan` takes them."""
        interval = {} if self.interval is None else {"guidance_interval": self.interval}
        return {"guidance_scale": self.scale, **interval}


Table = Mapping[Setting, Mapping[str, Estimate]]
NAMES = {
    "fid": "FID",
    "spatial_fid": "spatial FID",
    "inception_score": "IS",
    "precision": "precision",
    "recall": "recall",
    "class_accuracy": "class accuracy",
}


def guidance_claims(table: Table, again: Callable[[Setting], Mapping[str, Estimate]]) -> list[Claim]:
    """
    Args:
        table: the figures of all settings. Best settings are chosen by it.
        again: the figures of a setting on other samples, on which what was chosen is compared.
    """
    plain = Setting(ITSELF, 1)
    own = [setting for setting in table if setting.guide == ITSELF and setting.interval is None and setting.scale > 1]
    strong = [setting for setting in own if setting.scale >= SMALL]
    within = [setting for setting in table if setting.interval is not None]

    def lower(
        figure: str, pairs: Iterable[tuple[Setting, Setting]], of: Callable[[Setting], Any] = table.__getitem__
    ) -> tuple[Comparison, ...]:
        return tuple(
            below(f"{NAMES[figure]}: {_named(a, b)} < {_named(b, a)}", of(a)[figure], of(b)[figure]) for a, b in pairs
        )

    def best(settings: Sequence[Setting]) -> Setting:
        return min(settings, key=lambda setting: table[setting]["fid"].value)

    small = best([setting for setting in own if setting.scale <= SMALL])
    claims = [
        Claim("Guidance raises IS", lower("inception_score", [(plain, setting) for setting in strong])),
        Claim("Guidance raises precision", lower("precision", [(plain, setting) for setting in strong])),
        Claim("Guidance lowers recall", lower("recall", [(setting, plain) for setting in strong])),
        Claim(
            f"FID has its minimum at a guidance scale above 1, but not above {SMALL:g}",
            lower("fid", [(small, plain), (small, own[-1])], again),
        ),
        Claim(
            "An interval lowers the FID of a guidance scale",
            lower("fid", [(setting, setting._replace(interval=None)) for setting in within]),
        ),
        Claim(
            "With an interval the best FID is lower than the best without",
            lower("fid", [(best(within), best([plain, *own]))], again),
        ),
    ]
    if by_classifier := [setting for setting in table if setting.guide == CLASSIFIER]:
        alone, *guided = by_classifier
        claims += [
            Claim(
                "A classifier lowers the FID of an unconditional model", lower("fid", [(best(guided), alone)], again)
            ),
            Claim("… and raises its spatial FID", lower("spatial_fid", [(alone, best(guided))], again)),
        ]
    if by_weaker := [setting for setting in table if setting.guide == WEAKER]:
        chosen_one = best(by_weaker)
        claims += [
            Claim(
                "Autoguidance lowers FID, and more so than classifier-free guidance",
                lower("fid", [(chosen_one, plain), (chosen_one, best(own))], again),
            ),
            Claim(
                "Autoguidance keeps more recall than classifier-free guidance of the same scale",
                lower(
                    "recall",
                    [(same, setting) for setting in by_weaker if (same := setting._replace(guide=ITSELF)) in table],
                ),
            ),
        ]
    return claims


def _named(setting: Setting, beside: Setting) -> str:
    """A setting as a statement names it beside another; what guides, where that differs."""
    return str(setting) if setting.guide == beside.guide else f"{setting} by {setting.guide}"

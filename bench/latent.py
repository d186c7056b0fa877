"""`python -m bench.latent`: latent diffusion against diffusion in pixels, and what autoencoders keep, measured.

Of emoji it needs a project in which `make demo-latent` has run; what the demo has not trained is trained there.
Fashion-MNIST is measured if there is a project with prepared/ and extractor/ of it; all its models are trained there.
A run that was stopped goes on with the same command: no model is trained and no image drawn twice.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bench.cells import BATCH, Cells, TrainedModel
from bench.claims import Claim, Estimate, below
from bench.judge import GROUPS, Judge
from bench.latent_models import (
    AUTOENCODERS,
    EMOJI,
    FASHION,
    Subjects,
    autoencoder_teraflops,
    emoji_models,
    encoding_teraflops,
    fashion_models,
    train_missing,
    training_teraflops,
    unseen_by_losses,
)
from bench.latent_page import markdown, picture
from bench.study import add_project, must_have_run, publish, run
from ddpm.compute.device import pick_device
from ddpm.config.model import VariantConfig
from ddpm.config.params import PARAMS_FILE, Params, load_params
from ddpm.evaluation.distances import chosen
from ddpm.evaluation.extractor import load_extractor
from ddpm.evaluation.likelihood import gigaflops_per_image
from ddpm.evaluation.pictures import credit, save_png
from ddpm.evaluation.reconstruction import reconstruct
from ddpm.files import read_json
from ddpm.layout import EXTRACTOR, MODELS, PREPARED
from ddpm.model import load

DEMO = "demo-latent"
RESULTS, PAGE = Path("bench/results/latent.json"), Path("docs/latent-diffusion.md")
PICTURE = PAGE.with_name("latents.png")
LATENTS, PIXELS = "latents", "pixels"
FID, FID_OF_LOSS = "fid", "fid_of_loss"  # in the features that no loss has seen, and in those of the perceptual loss
FRACTION = 0.5  # of the operations of an image: what is called a fraction of them, at most, if such a setting is there
SHOWN = 12  # images in a row of the picture


class Setting(NamedTuple):
    """A model, and with how many steps it draws."""

    space: str
    steps: int

    def __str__(self) -> str:
        return f"{self.space} in {self.steps} steps"


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    latent_steps: tuple[int, ...] = (2, 5, 10, 20)
    pixel_steps: tuple[int, ...] = (20,)  # beside those that cost what the latents' cost
    samples: int = 500


FULL = Extent()
QUICK = Extent((2,), (3,), 40)

Table = Mapping[Setting, Estimate]
Figures = Mapping[str, Estimate]
Models = Callable[[Params], dict[str, VariantConfig]]
Rows = list[tuple[str, NDArray[np.uint8]]]  # of the picture: a name and images [SHOWN, H, W, C]


def main(argv: Sequence[str] | None = None) -> int:
    """Run or continue the study; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.latent", description=__doc__)
    add_project(parser, DEMO)
    parser.add_argument(
        "--fashion",
        type=Path,
        default=Path(".ddpm/ablation-fashion"),
        metavar="PROJECT",
        help="a project with params.yaml, prepared Fashion-MNIST and its extractor; without it Fashion-MNIST is left "
        "out (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    return run("bench.latent", lambda: write_study(arguments.project, arguments.fashion))


def write_study(project: Path, fashion: Path) -> None:
    """Train and measure what is not there yet, and write it."""
    must_have_run(DEMO, project, EMOJI.autoencoder)
    results, rows = study(project, fashion, FULL)
    credits = [found["protocol"]["attribution"] for found in results["studies"] if "protocol" in found]
    save_png(picture(rows), PICTURE, credit(next(filter(None, credits), None)), optimize=True)
    publish("latent", results, markdown(results), (RESULTS, PAGE), pictures=[PICTURE])


def study(project: Path, fashion: Path, extent: Extent) -> tuple[dict[str, Any], Rows]:
    """What the page says, as JSON, and the rows of its picture."""
    emoji = of_project(project, EMOJI, emoji_models, extent)
    studies, rows = [emoji.results()], emoji.pictures()
    if (fashion / PREPARED).is_dir() and (fashion / EXTRACTOR).is_dir():
        other = of_project(fashion, FASHION, fashion_models, extent)
        studies.append(other.results())
        rows += other.pictures()
    else:
        reason = f"{fashion} is no project with prepared data and an extractor"
        studies.append({"data": "fashion-mnist", "left_out": reason})
    kept = [emoji.kept(f"autoencoder-{name}") for name in AUTOENCODERS]
    return {"autoencoders": kept, "studies": studies}, rows


def of_project(root: Path, subjects: Subjects, models: Models, extent: Extent) -> LatentStudy:
    """The study of a project by its params.yaml, with the models of the study in place of its own."""
    params = load_params(root / PARAMS_FILE)
    return LatentStudy(params.model_copy(update={"models": models(params)}), root, subjects, extent)


class LatentStudy:
    """The models of one data set, trained where they are missing, and their figures."""

    def __init__(self, params: Params, root: Path, subjects: Subjects, extent: Extent) -> None:
        """
        Args:
            params: with the models of the study alone.
            root: a project with prepared/ and extractor/.
        """
        self._params, self._root, self._subjects, self._extent = params, root, subjects, extent
        train_missing(params, root)
        self._device = pick_device()
        self._apart = unseen_by_losses(params, root)
        self._judges = {FID: Judge(self._apart, seed=params.seed), FID_OF_LOSS: Judge(root, seed=params.seed)}
        self._data = self._judges[FID].data
        self._cells = Cells(root / ".ddpm" / "latent-cells")
        self._models = {LATENTS: self._read(subjects.latents), PIXELS: self._read(subjects.pixels)}
        self._autoencoder = load(root / MODELS / subjects.autoencoder, self._device)

    def _read(self, name: str) -> TrainedModel:
        return TrainedModel.read(self._root / MODELS / name, self._device, self._params.variant(name).sampling)

    def results(self) -> dict[str, Any]:
        """The tables and the verdicts, as JSON."""
        table = {setting: self._figures(setting, self._params.seed) for setting in self._settings()}
        floors = self._floors()
        return {
            "data": self._data.manifest.name,
            "protocol": self._protocol(),
            "training": self._training(),
            "autoencoder": self.kept(self._subjects.autoencoder),
            "floors": {name: as_json(figures) for name, figures in floors.items()},
            "settings": [
                {
                    "space": setting.space,
                    "steps": setting.steps,
                    "gflops_per_image": round(self._cost(setting), 3),
                    **as_json(figures),
                }
                for setting, figures in table.items()
            ],
            "claims": {
                name: [claim.as_dict() for claim in self._claims(table, floors["decoded"], name)]
                for name in self._judges
            },
        }

    def kept(self, name: str) -> dict[str, Any]:
        """What an autoencoder keeps of the validation images, what its latents are like, and what it costs."""
        model = load(self._root / MODELS / name, self._device)
        extractor = load_extractor(self._apart / EXTRACTOR, weights=None, device=self._device)
        found = reconstruct(model, self._data, extractor, batch_size=BATCH)
        said = ", ".join(f"{figure} {value:.3f}" for figure, value in found.figures.items())
        print(f"{name}: {said}", flush=True)
        config = self._params.variant(name)
        loss = config.objective.reconstruction
        assert loss is not None
        return {
            "name": name,
            "latent": list(model.network.latent_shape),  # type: ignore[arg-type]
            "kl": loss.kl,
            "steps": config.training.steps,
            "training_tflops": round(autoencoder_teraflops(model, self._params, self._root), 3),
            "figures": {figure: round(value, 4) for figure, value in found.figures.items()},
            "std": [round(channel.std, 4) for channel in found.channels],
            "mean": [round(channel.mean, 4) for channel in found.channels],
        }

    def pictures(self) -> Rows:
        """Real images, the same decoded, and the samples of both models at equal cost."""
        data, latents = self._data.manifest.name, Setting(LATENTS, max(self._extent.latent_steps))
        real = self._training_images()[:SHOWN]
        return [
            (data, real),
            ("after the autoencoder", self._decoded(real)),
            *((str(each), self._drawn(each, self._params.seed)[:SHOWN]) for each in (latents, self._as_dear(latents))),
        ]

    def _settings(self) -> list[Setting]:
        latents = [Setting(LATENTS, steps) for steps in self._extent.latent_steps]
        pixels = {self._as_dear(setting) for setting in latents}
        return [*latents, *sorted(pixels | {Setting(PIXELS, steps) for steps in self._extent.pixel_steps})]

    def _as_dear(self, latents: Setting) -> Setting:
        """The model of pixels with the number of steps whose operations are nearest, but no fewer."""
        return Setting(PIXELS, int(np.ceil(self._cost(latents) / self._cost(Setting(PIXELS, 1)))))

    def _cost(self, setting: Setting) -> float:
        """10⁹ operations of an image, the decoder's among them."""
        model = self._models[setting.space].model
        return gigaflops_per_image(model, model.plan(steps=setting.steps))

    def _drawn(self, setting: Setting, seed: int) -> NDArray[np.uint8]:
        return self._cells.samples(self._models[setting.space], self._extent.samples, seed, {"steps": setting.steps})

    def _figures(self, setting: Setting, seed: int) -> Figures:
        figures = self._judged(self._drawn(setting, seed))
        said = ", ".join(f"{name} {figure.value:.3f} ± {figure.error:.3f}" for name, figure in figures.items())
        print(f"{self._data.manifest.name}, {setting}, seed {seed}: {said}", flush=True)
        return figures

    def _judged(self, images: NDArray[np.uint8]) -> Figures:
        return {name: judge.fid(images) for name, judge in self._judges.items()}

    def _claims(self, table: Mapping[Setting, Figures], decoded: Figures, name: str) -> list[Claim]:
        """In the features of one judge; what is best is chosen in them too."""
        costs = {setting: self._cost(setting) for setting in table}
        fids = {setting: figures[name] for setting, figures in table.items()}
        return latent_claims(fids, costs, decoded[name], lambda each: self._figures(each, self._params.seed + 1)[name])

    def _training_images(self) -> NDArray[np.uint8]:
        train = self._data.split("train")
        return train.rows(np.sort(chosen(len(train), min(self._extent.samples, len(train)), self._params.seed)))

    @torch.inference_mode()
    def _decoded(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Images after the autoencoder, from the means of their latents."""
        codec = self._autoencoder.codec
        parts = np.array_split(images, -(-len(images) // BATCH))
        encoded = (codec.encode(torch.from_numpy(part).to(self._device)) for part in parts)
        return np.concatenate([codec.decode(self._autoencoder.network(x).cpu().numpy()) for x in encoded])

    def _floors(self) -> dict[str, Figures]:
        """The FID of as many training images as there are samples, and of the same after the autoencoder."""
        images = self._training_images()
        return {"real": self._judged(images), "decoded": self._judged(self._decoded(images))}

    def _training(self) -> dict[str, float]:
        """10¹² operations of each training."""
        count = self._data.manifest.counts
        names = {LATENTS: self._subjects.latents, PIXELS: self._subjects.pixels}
        costs = {
            "autoencoder": autoencoder_teraflops(self._autoencoder, self._params, self._root),
            "encoding": encoding_teraflops(self._autoencoder, count.train + count.validation),
            **{
                space: training_teraflops(self._models[space].model, self._params.variant(name))
                for space, name in names.items()
            },
        }
        return {name: round(cost, 3) for name, cost in costs.items()}

    def _protocol(self) -> dict[str, Any]:
        data, names = self._data, self._subjects
        train, validation = data.split("train"), data.split("validation")
        sampling = self._params.variant(names.latents).sampling, self._params.variant(names.pixels).sampling
        return {
            "shape": data.manifest.shape,
            "attribution": data.manifest.attribution,
            "models": names._asdict(),
            "steps": {name: self._params.variant(name).training.steps for name in names},
            "samplers": [each.sampler for each in sampling],
            "extractor": read_json(self._apart / EXTRACTOR / "extractor.json"),
            "reference": {"images": len(train), "sha256": train.sha256},
            "validation": {
                "images": len(validation),
                "fid": round(self._judges[FID].distance(validation, len(validation)), 4),
            },
            "samples": self._extent.samples,
            "seeds": [self._params.seed, self._params.seed + 1],
            "groups": GROUPS,
        }


def as_json(figures: Figures) -> dict[str, dict[str, float]]:
    """As JSON has them."""
    return {name: figure.as_dict() for name, figure in figures.items()}


def latent_claims(
    table: Table, costs: Mapping[Setting, float], decoded: Estimate, again: Callable[[Setting], Estimate]
) -> list[Claim]:
    """Of latent diffusion (Rombach et al. 2022, §4.1 and 4.2), and of the autoencoder's part in its FID.

    Args:
        table: the FID of each setting. There is one of pixels at least as dear as each of latents.
        costs: operations an image.
        decoded: the FID of real images after the autoencoder.
        again: the FID of other samples of a setting. What is chosen by the table is compared by these.
    """
    latents, pixels = ([each for each in table if each.space == space] for space in (LATENTS, PIXELS))

    def as_dear(setting: Setting) -> Setting:
        return min((each for each in pixels if costs[each] >= costs[setting]), key=lambda each: costs[each])

    def best(settings: Sequence[Setting]) -> Setting:
        return min(settings, key=lambda setting: table[setting].value)

    target, lowest = best(pixels), best(latents)
    affordable = [each for each in latents if costs[each] <= costs[target]]
    reaching = best([each for each in affordable if costs[each] <= FRACTION * costs[target]] or affordable)
    share = f"{costs[reaching] / costs[target]:.0%} of the operations"
    return [
        Claim(
            "At as many operations an image, latent diffusion has the lower FID",
            tuple(below(f"{each} < {(other := as_dear(each))}", table[each], table[other]) for each in latents),
        ),
        Claim(
            "Latent diffusion reaches the lowest FID of diffusion in pixels at a fraction of the operations",
            (below(f"{reaching} < {target}, with {share}", again(reaching), again(target)),),
        ),
        Claim(
            "The autoencoder is not what most of the FID of latent diffusion comes from",
            (below(f"real images after the autoencoder < half of {lowest}", decoded, again(lowest), 0.5),),
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())

"""The options of the commands that have many. The standard library alone is imported, as by all of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from ddpm.layout import COMPARISON
from ddpm.serve.arguments import add_precision

STRENGTH = 0.4  # of a change by texts, as `drawer.likeness` has it
SAMPLES = 64  # images of `ddpm sample`
LARGEST = 2**31 - 1  # what a C int holds, as in params.yaml


def add_init(init: argparse.ArgumentParser) -> None:
    init.add_argument("directory", type=a_path, metavar="DIR", help="the project's folder; created if needed")
    init.add_argument(
        "--images", type=a_path, required=True, metavar="PATH", help="a folder of images; subfolders are classes"
    )
    init.add_argument("--size", type=_positive, help="pixels per side (default: 32, or less if the images are smaller)")
    init.add_argument(
        "--channels", type=int, choices=[1, 3], help="1 for grey, 3 for colour (default: that of the images)"
    )


def add_completion(completion: argparse.ArgumentParser) -> None:
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"])


def add_sample(sample: argparse.ArgumentParser) -> None:
    sample.add_argument(
        "model", metavar="MODEL", help="V, models/V, deploy/V, or a URI such as models:/ddpm-digits@champion"
    )
    sample.add_argument("--n", type=_count, help=f"how many images (default: {SAMPLES})")
    sample.add_argument(
        "--out",
        type=a_path,
        required=True,
        help="FILE.npz (images as uint8 [N, H, W, C]), FILE.png, or for images a new directory",
    )
    sample.add_argument(
        "--seed", type=int, default=0, help="image i of a seed is always the same (default: %(default)s)"
    )
    sample.add_argument(
        "--sampler",
        help="ancestral, ddim, dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, unipc, unipc_bh1, euler, euler_ancestral, "
        "euler_maruyama, heun or langevin (default: the model's own)",
    )
    sample.add_argument("--steps", type=_count, help="network evaluations per image (default: the model's own)")
    sample.add_argument(
        "--variance", help="for ancestral: fixed_large, fixed_small or learned_range (default: the model's own)"
    )
    sample.add_argument(
        "--spacing",
        help="visited noise levels: leading, trailing, linspace, even, quadratic, native, karras or exponential "
        "(default: the model's own)",
    )
    sample.add_argument("--eta", type=float, help="DDIM's share of noise, 0 to 1 (default: the model's own)")
    sample.add_argument(
        "--label",
        type=_words,
        metavar="NAME|NUMBER[,…]",
        help="of a conditional model: the class; of several, image i gets the one at i modulo their number (default: "
        "drawn as often as in the training data)",
    )
    sample.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="of a model that was trained on captions: what to draw; may be given several times, then image i gets the "
        "one at i modulo their number (default: a training caption for each image)",
    )
    sample.add_argument(
        "--low",
        type=a_path,
        metavar="FILE|DIR",
        help="of an upsampler: the small image, of the size that the model was trained on; of several in a directory, "
        "image i gets the one at i modulo their number",
    )
    sample.add_argument(
        "--low-noise",
        type=float,
        metavar="S",
        help="of an upsampler that was trained with noise on the small image: standard deviation of the noise to add "
        "to it; some hides its faults (default: 0)",
    )
    sample.add_argument(
        "--image",
        type=a_path,
        metavar="FILE|DIR",
        help="an image of which a part is kept, of the size that the model draws; needs --mask",
    )
    sample.add_argument(
        "--mask",
        type=a_path,
        metavar="FILE|DIR",
        help="which part of --image is kept: white is kept, black is drawn again",
    )
    sample.add_argument(
        "--inpainting",
        choices=["replace", "repaint"],
        help="how the rest is made to fit: replace denoises it beside the kept part; repaint also goes back into the "
        "noise again and again, for models that were not trained for it; needs --sampler ancestral or ddim, and takes "
        "many times as long (default: replace)",
    )
    sample.add_argument(
        "--resamples",
        type=_count,
        metavar="N",
        help="of repaint: how many times each group of --jump steps is run (default: 10)",
    )
    sample.add_argument(
        "--jump",
        type=_count,
        metavar="N",
        help="of repaint: the steps in a group, fewer than --steps; of a cascade only the base repaints (default: 10)",
    )
    sample.add_argument(
        "--like",
        type=a_path,
        action="append",
        metavar="FILE",
        help="of a model that draws pictures of CLIP embeddings: a picture to draw variations of; may be given several "
        "times, then image i is like the one at i modulo their number. The centre square is resized to what CLIP takes",
    )
    sample.add_argument(
        "--mix",
        type=_count,
        metavar="N",
        help="draw N images, in place of --n, on the way from the first --like to the second, all of the same noise; "
        "with --from and --to on the way from the one picture of --like to the changed one",
    )
    sample.add_argument(
        "--from",
        dest="change_from",
        metavar="TEXT",
        help='what the picture of --like shows, such as "man"; with --to the picture is changed by the difference of '
        "the two texts, and without --mix one image is drawn, the changed one",
    )
    sample.add_argument("--to", dest="change_to", metavar="TEXT", help='what it is to become, such as "woman"')
    sample.add_argument(
        "--strength",
        type=float,
        metavar="S",
        help="how far --from and --to change the picture, above 0 and at most 1; at 1 only the difference of the texts "
        f"is left (default: {STRENGTH:g})",
    )
    sample.add_argument(
        "--control",
        type=a_path,
        action="append",
        metavar="FILE|DIR",
        help="of a model with a control: the hint, such as edges in white on black, of the size that the model was "
        "trained on; of several in a directory, image i gets the one at i modulo their number. Of a model with several "
        "controls: given once for each, in their order",
    )
    sample.add_argument(
        "--control-scale",
        type=float,
        metavar="S",
        help="of a model with a control: the weight of what the control adds, 0 for none (default: the model's own)",
    )
    sample.add_argument(
        "--control-interval",
        type=_shares,
        metavar="LOW,HIGH",
        help="shares of the process, 0 data and 1 noise, between which there is a control (default: the model's own)",
    )
    sample.add_argument(
        "--guess",
        action=argparse.BooleanOptionalAction,
        help="of a model with a control: guess mode, in which the hint counts more than the label or the prompt "
        "(default: the model's own)",
    )
    sample.add_argument(
        "--guidance-scale",
        type=float,
        metavar="S",
        help="of a conditional model or with a guide: 1 as trained, above 1 more typical of the class; of a classifier "
        "as guide: what multiplies its gradient, 0 for none (default: the model's own)",
    )
    sample.add_argument(
        "--guide",
        metavar="MODEL",
        help="V or models/V: a classifier of the same classes, or a weaker model to move away from (default: the "
        "model's own, or the model without its condition)",
    )
    sample.add_argument(
        "--guidance-interval",
        type=_shares,
        metavar="LOW,HIGH",
        help="shares of the process, 0 data and 1 noise, between which guidance holds (default: the model's own)",
    )
    sample.add_argument(
        "--batch-size", type=_count, default=64, help="does not change the images (default: %(default)s)"
    )
    add_precision(sample)


def add_compare(compare: argparse.ArgumentParser) -> None:
    compare.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a model of params.yaml, models/V, deploy/V, or a URI such as models:/ddpm-digits@champion",
    )
    compare.add_argument(
        "--out",
        type=a_path,
        default=COMPARISON,
        help="a directory for report.html and comparison.json (default: %(default)s)",
    )
    compare.add_argument(
        "--steps",
        type=_integers,
        help="the numbers of network evaluations per image to measure at, such as 5,10,20 "
        "(default: 5,10,20,50,100, up to the timesteps that all models have)",
    )
    compare.add_argument("--sampler", default="ddim", help="the sampler for all models (default: %(default)s)")
    compare.add_argument(
        "--samples", type=_count, help="samples to draw at each number of steps (default: evaluation.samples)"
    )
    compare.add_argument(
        "--guidance-scale",
        type=_numbers,
        metavar="S[,…]",
        help="also measure the models that can be guided at these guidance scales, such as 1,1.5,2,3,5",
    )
    compare.add_argument(
        "--rank",
        action="store_true",
        help="put the best model first; an error if the models were measured under different protocols",
    )


def add_tune_guidance(tune: argparse.ArgumentParser) -> None:
    tune.add_argument(
        "--scales",
        type=_numbers,
        metavar="S[,…]",
        help="guidance scales to try (default: 1,1.25,1.5,2,3,5; with a classifier as guide: 0,0.5,1,2,4,8)",
    )
    tune.add_argument(
        "--intervals",
        type=_shares,
        nargs="+",
        metavar="LOW,HIGH",
        help="shares of the process, 0 data and 1 noise, between which the scale holds, to try with each scale "
        "(default: 0,1 0.2,0.8)",
    )
    tune.add_argument("--samples", type=_count, help="samples to draw with each setting (default: evaluation.samples)")


def add_tune_ema(tune: argparse.ArgumentParser) -> None:
    tune.add_argument(
        "--lengths",
        type=_numbers,
        metavar="L[,…]",
        help="lengths to try: standard deviations in time, as shares of the training, at most 0.28 "
        "(default: 0.01,0.02,0.04,0.06,0.08,0.12,0.16,0.22)",
    )
    tune.add_argument("--samples", type=_count, help="samples to draw with each length (default: evaluation.samples)")
    tune.add_argument(
        "--out", type=Path, metavar="DIR", help="write the model with the best length as a model directory"
    )


def add_promotion(promote: argparse.ArgumentParser, rollback: argparse.ArgumentParser) -> None:
    chosen = promote.add_mutually_exclusive_group(required=True)
    chosen.add_argument(
        "variant", metavar="V", nargs="?", help="a model named in params.yaml: its newest registered version"
    )
    chosen.add_argument("--to", type=int, metavar="VERSION", help="promote this version, whatever the rules say")
    for by_hand in (promote, rollback):
        by_hand.add_argument("--reason", required=by_hand is rollback, help="kept with the version in MLflow")
        by_hand.add_argument("--model", metavar="NAME", help="the registered model (default: ddpm-<data>)")


def add_measure(measure: argparse.ArgumentParser) -> None:
    measure.add_argument("model", metavar="MODEL", help="deploy/V, or a URI such as models:/ddpm-digits@champion")
    measure.add_argument("--out", type=a_path, required=True, metavar="FILE", help="JSON: its `metrics` and `protocol`")


def add_import(bring: argparse.ArgumentParser) -> None:
    bring.add_argument(
        "source",
        type=a_path,
        metavar="SOURCE",
        help="a .pt file of openai/improved-diffusion, guided-diffusion (its classifiers too) or "
        "denoising_diffusion_pytorch, a .ckpt or .safetensors file of latent diffusion or Stable Diffusion, or a "
        "directory of diffusers' UNet2DModel, StableDiffusionPipeline or PriorTransformer with its text_encoder/",
    )
    bring.add_argument("--out", type=a_path, required=True, help="the model directory, such as models/V")
    bring.add_argument(
        "--dry-run",
        action="store_true",
        help="print parameters, memory and the time of an image, from one step; write nothing",
    )
    bring.add_argument("--data-name", help="what it was trained on (default: the name of --out)")
    bring.add_argument("--image-size", type=_positive, help="pixels per side, if SOURCE does not contain it")
    bring.add_argument(
        "--classes",
        metavar="NAME,…|@FILE",
        help="the classes in the order of their numbers, or a file with a name a line (default: their numbers)",
    )
    bring.add_argument(
        "--null-class",
        action="store_true",
        help="the last row of the class embedding was trained as `no class`: the model can be guided",
    )
    control = bring.add_argument_group("for a directory of diffusers' ControlNetModel")
    control.add_argument("--base", metavar="MODEL", help="the model that it controls, such as models/V")
    control.add_argument(
        "--hint",
        choices=["edges", "silhouette", "given"],
        default="given",
        help="what it was trained on; given: any picture in colour (default: %(default)s)",
    )
    built = bring.add_argument_group(
        "for sequences from denoising_diffusion_pytorch", "as they were passed to GaussianDiffusion1D"
    )
    built.add_argument("--seq-length", type=_positive)
    built.add_argument("--auto-normalize", action=argparse.BooleanOptionalAction, default=True)
    latent = bring.add_argument_group(
        "for a file of latent diffusion or Stable Diffusion", "what it does not hold; see also --num-heads below"
    )
    latent.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="with CLIP's vocab.json and merges.txt, as in a pipeline's tokenizer/",
    )
    latent.add_argument(
        "--parameterization", choices=["eps", "x0", "v"], help="what the network predicts (default: eps)"
    )
    flags = bring.add_argument_group(
        "for OpenAI's files", "the training command's flags, for what the shapes of the weights do not show"
    )
    flags.add_argument("--num-heads", type=_positive)
    flags.add_argument(
        "--num-heads-upsample",
        type=int,
        help="leaves no trace in the weights either: ddpm imports only networks where it is -1 or --num-heads",
    )
    flags.add_argument("--num-head-channels", type=_positive)
    flags.add_argument("--noise-schedule", choices=["linear", "cosine"])
    flags.add_argument("--diffusion-steps", type=_positive)
    flags.add_argument("--rescale-timesteps", action=argparse.BooleanOptionalAction)
    flags.add_argument("--use-new-attention-order", action="store_true")
    flags.add_argument("--predict-xstart", action="store_true")
    flags.add_argument("--sigma-small", action="store_true")
    flags.add_argument("--dropout", type=float, default=0.0)


def add_export_diffusers(give: argparse.ArgumentParser) -> None:
    give.add_argument("model", type=a_path, metavar="MODEL", help="a model directory, such as models/V")
    give.add_argument("out", type=a_path, metavar="OUT", help="a new directory")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _shares(text: str) -> tuple[float, float]:
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected two numbers such as 0.2,0.8, found {text!r}") from None
    return low, high


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 1,1.5,2, found {text!r:.50}") from None


def _integers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 5,10,20, found {text!r}") from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, found {text}")
    return int(text)


def _count(text: str) -> int:
    """Of images, or of steps; the commands say what is too few."""
    try:
        count = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r:.50}") from None
    if count > LARGEST:
        raise argparse.ArgumentTypeError(f"expected at most {LARGEST}, found a number of {len(text)} digits")
    return count


def a_path(text: str) -> Path:
    """A path that the system can be asked for."""
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"a path has no NUL character, found {text!r}")
    path = Path(text)
    try:
        path.resolve()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text} is a link that leads to itself") from None
    return path

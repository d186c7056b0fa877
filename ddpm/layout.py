"""Where the stages read and write, below the project's root; and how a URI is distinguished from a path."""

from __future__ import annotations

from pathlib import Path

from ddpm.errors import UserError

PREPARED = Path("prepared")
EXTRACTOR = Path("extractor")
LATENTS = Path("latents")
EMBEDDINGS = Path("embeddings")
MODELS = Path("models")
REPORTS = Path("reports")
DEPLOY = Path("deploy")
# Below a model directory: a file for each guide of params.yaml, which says whether it guides the model.
GUIDES = "guides"
# Likewise for each CLIP: whether it measures the model.
JUDGES = "judges"
# In a model or deploy directory of a cascade: what it is, and in what order the links draw whose directories it has.
CASCADE = "cascade.json"
# Beside the pipeline: the page of a comparison, the numbers in it, and what each model draws of the same noise.
COMPARISON = Path("comparison")
COMPARISON_PAGE, COMPARISON_RECORD, COMPARISON_PICTURE = "report.html", "comparison.json", "samples.png"
# Unfinished training: outside every DVC output, since DVC removes those before it runs a stage again.
TRAINING_STATES = Path(".ddpm/training")
# Features of real images, which every evaluation needs again; may be deleted at any time.
FEATURES = Path(".ddpm/features")


def is_uri(model: str) -> bool:
    """Whether MODEL names something in MLflow, and not a directory."""
    return model.startswith(("models:/", "runs:/"))


def find_model(model: str | Path, *, trained: bool = True, exported: bool = True, root: Path = Path()) -> Path:
    """The directory that MODEL names where it is no URI: a model or deploy directory, or one of this project by its
    name alone, `V` for `models/V` or else `deploy/V`.

    Args:
        trained: accept model directories.
        exported: accept deploy directories.
        root: the project's folder.

    Raises:
        UserError: there is no such directory; it says which command makes it.
    """
    kinds = [(MODELS, "model.json", "a model directory")] if trained else []
    kinds += [(DEPLOY, "sampler.json", "a deploy directory")] if exported else []
    given, is_name = root / model, Path(model).name == str(model)
    places = [given, *(root / folder / model for folder, _, _ in kinds if is_name)]
    for place in places:
        within = "*/" if (place / CASCADE).is_file() else ""
        if any(any(place.glob(f"{within}{file}")) for _, file, _ in kinds):
            return place
    expected = ", ".join(f"{what} ({file})" for _, file, what in kinds)
    expected += " or a URI such as models:/ddpm-digits@champion" if exported else ""
    without = "neither file" if len(kinds) > 1 else f"no {kinds[0][1]}"
    found = f"it has {without}" if given.is_dir() else "no such directory"
    wanted = places[1] if is_name else given if trained else root / DEPLOY / given.name
    raise UserError(f"{model}: expected {expected}; {found}{made_by(wanted)}")


def made_by(directory: Path) -> str:
    """What to say at the end of a message that a directory of the pipeline is missing: which command makes it."""
    commands = {MODELS.name: "train", REPORTS.name: "evaluate", DEPLOY.name: "export"}
    command = commands.get(directory.absolute().parent.name)
    return f"; `ddpm {command} {directory.name}` makes {directory}" if command else ""

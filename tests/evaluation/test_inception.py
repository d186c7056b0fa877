"""InceptionV3 from a file in the published format, with random weights in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.utils import create_feature_extractor

from ddpm.config.params import Params
from ddpm.data.store import PreparedData
from ddpm.errors import UserError
from ddpm.evaluation.extractor import (
    INCEPTION_FILE,
    INCEPTION_SHA256,
    Features,
    InceptionExtractor,
    load_extractor,
    missing_inception,
    save_inception,
)
from ddpm.evaluation.features import extract
from ddpm.evaluation.image_metrics import ImageMeasure
from ddpm.evaluation.metrics import frechet_distance, inception_score, kernel_distance
from ddpm.files import sha256_of

COUNT = 8


class Untrained(FeatureExtractorInceptionV3):
    """Keeps its random weights, whatever the file says."""

    def load_state_dict(self, state, *arguments, **options):
        return None


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of tensors alone, by the published file's names."""
    path = tmp_path_factory.mktemp("inception") / INCEPTION_FILE
    torch.save({}, path)
    torch.manual_seed(0)
    network = Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    state = {
        # As far from degenerate as trained weights are: signals neither vanish nor explode.
        name: tensor if tensor.ndim != 4 else torch.nn.init.kaiming_normal_(tensor)
        for name, tensor in network.state_dict().items()
    }
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    random = np.random.RandomState(0)
    return [random.randint(low, 256, (COUNT, 16, 16, 3)).astype(np.uint8) for low in (0, 60)]


@pytest.fixture(scope="module")
def inception(weights: Path) -> InceptionExtractor:
    return InceptionExtractor(weights, torch.device("cpu"))


@pytest.fixture(scope="module")
def found(inception: InceptionExtractor, pictures: list[np.ndarray]) -> list[Features]:
    return [extract(inception, [images], COUNT) for images in pictures]


class AsTensors(torch.utils.data.Dataset):
    """What torch-fidelity takes: images [C, H, W] uint8."""

    def __init__(self, images: np.ndarray) -> None:
        self._images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._images[index]


def test_the_figures_are_torch_fidelitys_from_pixels_on(weights: Path, pictures, found: list[Features]):
    theirs = calculate_metrics(
        input1=AsTensors(pictures[0]),
        input2=AsTensors(pictures[1]),
        fid=True,
        isc=True,
        kid=True,
        isc_splits=2,
        kid_subset_size=COUNT,
        kid_subsets=1,
        feature_extractor_weights_path=str(weights),
        cuda=False,
        save_cpu_ram=True,
        batch_size=COUNT,
        cache=False,
        verbose=False,
    )
    generated, real = found
    assert frechet_distance(generated.features, real.features) == pytest.approx(
        theirs["frechet_inception_distance"], rel=1e-4
    )
    assert inception_score(generated.logits, 2)[0] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert kernel_distance(generated.features, real.features)[0] == pytest.approx(
        theirs["kernel_inception_distance_mean"], rel=1e-4
    )


def test_spatial_features_are_seven_maps_of_17_by_17(weights: Path, pictures, found: list[Features]):
    """Those that the 768 features are taken one block behind: seen again through torch-fidelity's own network."""
    assert found[0].spatial is not None
    assert found[0].spatial.shape == (COUNT, 7 * 17 * 17)
    network = create_feature_extractor(
        "inception-v3-compat", ["2048"], cuda=False, feature_extractor_weights_path=str(weights)
    )
    seen: list[torch.Tensor] = []
    network.Mixed_6d.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        network(AsTensors(pictures[0])[:2])
    # A block's output starts with that of its 1×1 convolution.
    torch.testing.assert_close(found[0].spatial[:2], seen[0][:, :7].flatten(1), rtol=1e-4, atol=1e-4)
    statistics = [fid_features_to_statistics(each.spatial.double()) for each in found]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(found[0].spatial, found[1].spatial) == pytest.approx(expected, rel=1e-4)


def test_another_weights_file_is_refused(weights: Path, tmp_path: Path):
    save_inception(weights, tmp_path)
    assert load_extractor(tmp_path, weights=str(weights), device=torch.device("cpu")).identity == {
        "kind": "inception",
        "sha256": sha256_of(weights),
    }
    other = tmp_path / "other.pth"
    other.write_bytes(weights.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"other.pth: SHA-256 .* was made with"):
        load_extractor(tmp_path, weights=str(other), device=torch.device("cpu"))


def test_the_papers_protocol_is_of_the_papers_weights(
    weights: Path, inception: InceptionExtractor, project: Path, monkeypatch: pytest.MonkeyPatch
):
    params = Params.model_validate(
        {"evaluation": {"protocol": "inception-50k"}, "extractor": {"kind": "inception"}, "models": {"ddpm": {}}}
    )
    data = PreparedData.open(project / "prepared")
    with pytest.raises(UserError, match=rf"\(SHA-256 6726825d\w{{56}}\), but .* a file of {sha256_of(weights)}"):
        ImageMeasure(params, data, inception, project / "cache")
    monkeypatch.setitem(inception.identity, "sha256", INCEPTION_SHA256[:8] + "0" * 56)
    with pytest.raises(UserError, match="but extractor/ was made with a file of 6726825d0000"):
        ImageMeasure(params, data, inception, project / "cache")
    fitted = load_extractor(project / "extractor", weights=None, device=torch.device("cpu"))
    with pytest.raises(UserError, match="extractor/ holds a classifier network: run `ddpm fit-extractor`"):
        ImageMeasure(params, data, fitted, project / "cache")


def test_a_file_that_is_not_inception_is_refused(tmp_path: Path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="not InceptionV3 weights in torch-fidelity's format") as caught:
        InceptionExtractor(tmp_path / "weights.pth", torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named_with_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    said = str(missing_inception())
    assert f"{INCEPTION_FILE}" in said
    assert f"SHA-256 {INCEPTION_SHA256}" in said
    assert str(tmp_path / "hub/checkpoints" / INCEPTION_FILE) in said

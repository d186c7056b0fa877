"""The table at the end of a run says of how many images each figure is, in words."""

from ddpm.tracking import Registration
from flows.report import Result, text

VERSION = Registration("ddpm-digits", 1, "run", ("champion",), "the first")
IMAGES = {
    **{"fid": 0.84, "fid_low": 0.8, "fid_high": 0.9, "fid_same_count": 1.56, "fid_floor": 1.2},
    **{"samples": 2000, "same_count": 360},
}


def row(result: Result, label: str) -> str:
    [line] = [line for line in text([result]).splitlines() if line.split("  ")[1] == label]
    return line.removeprefix(f"  {label}").strip()


def test_both_fids_are_in_the_table_with_the_number_of_images_they_are_of():
    result = Result("ddpm", VERSION, IMAGES, {"extractor": "classifier"})
    assert row(result, "FID (small CNN)") == "0.84 [0.8, 0.9]"
    assert row(result, "FID (small CNN), same count") == "1.56; real data: 1.2"
    assert row(result, "samples") == (
        '2000 generated; of the figures with "same count" only 360, as many as there are held-out real images, because '
        "FID and Inception Score depend on the number: these compare with real data"
    )


def test_figures_of_points_are_of_one_number():
    result = Result("ddpm", VERSION, {"wasserstein": 0.1, "wasserstein_floor": 0.05, "same_count": 200}, {})
    assert row(result, "samples") == "200, held against as many real data"
    assert row(result, "Wasserstein distance") == "0.1; real data: 0.05"

"""The U-Net's options in ONNX: the exported network says what the trained one says."""

import numpy as np
import pytest
import torch

from ddpm.codecs.scale import PixelCodec, ValueCodec
from ddpm.config.network import NetworkConfig
from ddpm.config.process import ProcessConfig
from ddpm.config.sampling import SamplingConfig
from ddpm.export.files import export_denoiser
from ddpm.interop.published import Published
from ddpm.nets.condition import Shapes
from ddpm.nets.unet import UNet
from ddpm.stages.interop import assemble

SMALL = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,), "groups": 4}
IMAGES = PixelCodec((8, 8, 1))
SEQUENCES = ValueCodec("sequences", (1, 8), low=(-1.0,), high=(1.0,))
ADM = {"scale_shift": True, "resample": "residual", "head_channels": 4, "checkpointing": True}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (IMAGES, ADM),
        (SEQUENCES, ADM),
        (IMAGES, {"resample": "plain", "rescale_residuals": True, "frequency_shift": 0, "timestep_scale": 0.25}),
        (IMAGES, {"downsample_padding": "asymmetric", "middle_attention": False, "norm_epsilon": 1e-6}),
    ],
    ids=["adm", "adm, 1-D", "plain", "asymmetric"],
)
def test_every_option_is_exported(kind, options, tmp_path):
    import onnxruntime

    torch.manual_seed(0)
    network = UNet(Shapes(kind.network_shape), **SMALL, **options)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    weights = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    published = Published(NetworkConfig(**SMALL, **options), ProcessConfig(), SamplingConfig(), kind, weights)
    model = assemble(published, variant="tiny", data_name="digits", fingerprint="0")
    export_denoiser(model, tmp_path / "denoiser.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "denoiser.onnx", providers=["CPUExecutionProvider"])
    x, t = torch.randn(3, *kind.network_shape), torch.tensor([0, 17, 999])
    (exported,) = session.run(None, {"x": x.numpy(), "t": t.numpy()})
    with torch.no_grad():
        expected = model.network(x, t).numpy()
    np.testing.assert_allclose(exported, expected, atol=1e-4 * np.abs(expected).max())

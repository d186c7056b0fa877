"""CLIP's text encoder, held against torch's own transformer layers, and its directories in and out."""

from __future__ import annotations

import json

import pytest
import torch
from clip_text import MARKS, SIZES, VOCABULARY, config_of, directory_of, peer, state_of, their_answer
from prompts import Prompt, Words
from recorded import assert_equal, assert_parameters
from safetensors.torch import load_file, save_file
from tiny import UNET
from weights import awake

from ddpm.conditioning.guidance import ClassifierFree
from ddpm.conditioning.network import ConditionalNetwork, ports_for
from ddpm.conditioning.tokenizers import BytePairs
from ddpm.config.base import validate
from ddpm.config.condition import PromptConfig
from ddpm.errors import UserError
from ddpm.interop import clip
from ddpm.nets import build
from ddpm.nets.text import CLIPText, Marks
from ddpm.training.start import text_encoder_from

IDS = torch.tensor([[3, 4, 5, 6], [7, 9, 9, 9], [9, 9, 9, 9]])
THERE = MARKS.end != IDS
# With the marks: what CLIP's tokenizer makes of these captions.
MARKED = torch.tensor([[8, 3, 4, 5, 6, 9], [8, 7, 9, 9, 9, 9], [8, 9, 9, 9, 9, 9]])


def test_a_caption_is_marked_at_its_start_and_its_end():
    encoder = CLIPText(VOCABULARY, 4, marks=MARKS, **SIZES)
    assert torch.equal(encoder.marked(IDS, THERE), MARKED)
    filled = CLIPText(VOCABULARY, 4, marks=MARKS._replace(filler=0), **SIZES).marked(IDS, THERE)
    assert filled.tolist() == [[8, 3, 4, 5, 6, 9], [8, 7, 9, 0, 0, 0], [8, 9, 0, 0, 0, 0]]


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_directory_of_a_cliptextmodel_is_read_as_the_same_encoder(activation, tmp_path):
    theirs = peer(activation)
    directory_of(theirs, tmp_path, activation)
    found, files = clip.read(tmp_path)
    assert files == (tmp_path / "model.safetensors",)
    assert found.options == {"encoder": "clip", "length": 4, "activation": activation, **SIZES}
    encoder = CLIPText(VOCABULARY, 4, marks=MARKS, activation=activation, **SIZES).eval()
    encoder.load_state_dict(found.weights)
    with torch.no_grad():
        answer, expected = encoder(IDS, THERE), their_answer(theirs, MARKED)
    assert_equal(answer, expected, "text encoder", bound=1e-6)
    back = clip.their_weights(found.weights)
    published = load_file(tmp_path / "model.safetensors")
    assert back.keys() == published.keys()
    assert all(torch.equal(back[name], published[name]) for name in back)
    config = clip.their_config(found.options, VOCABULARY, MARKS)
    assert config | json.loads((tmp_path / "config.json").read_text()) == config


def test_older_files_have_the_numbers_of_the_positions_and_newer_no_prefix(tmp_path):
    directory_of(peer("gelu"), tmp_path, "gelu")
    path = tmp_path / "model.safetensors"
    expected = clip.read(tmp_path)[0].weights
    plain = {name.removeprefix("text_model."): tensor for name, tensor in load_file(path).items()}
    save_file(plain | {"embeddings.position_ids": torch.arange(6)[None]}, path)
    found = clip.read(tmp_path)[0].weights
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_open_clips_names_are_read_without_the_last_block():
    """As Stable Diffusion 2's files have them: torch's own for the attention, and a block that is not used."""
    theirs = peer("gelu")
    state = {
        "token_embedding.weight": theirs["tokens"].weight,
        "positional_embedding": theirs["positions"].weight,
        "text_projection": torch.zeros(12, 12),
        "logit_scale": torch.zeros(()),
    }
    renamed = {"layers.": "transformer.resblocks.", "self_attn.": "attn.", "norm1": "ln_1", "norm2": "ln_2"}
    renamed |= {"linear1": "mlp.c_fc", "linear2": "mlp.c_proj"}
    for name, tensor in theirs["layers"].state_dict().items():
        for ours, new in renamed.items():
            name = name.replace(ours, new)
        state[f"ln_final{name.removeprefix('norm')}" if name.startswith("norm.") else name] = tensor
        state[name.replace("resblocks.1.", "resblocks.2.")] = tensor + 1 if ".1." in name else tensor
    state = {name: tensor for name, tensor in state.items() if not name.startswith("norm.")}
    assert any(name.startswith("transformer.resblocks.2.") for name in state)
    found = clip.convert(config_of(theirs, "gelu"), clip.of_open_clip(state, without=1), "test")
    expected = clip.convert(config_of(theirs, "gelu"), state_of(theirs), "test")
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in expected.weights.items())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"intermediate_size": 37}, "intermediate_size is 37; expected 4 times hidden_size, 48"),
        ({"num_attention_heads": 5}, "num_attention_heads is 5, which does not divide hidden_size 12"),
        ({"hidden_act": "relu"}, "`hidden_act`"),
        ({"num_hidden_layers": 3}, r"another network: missing encoder\.layers\.2\."),
        ({"num_hidden_layers": 10**6}, r"another network: \d+ tensors for 1000000 layers"),
        ({"vocab_size": 1 << 40}, "`vocab_size`"),
        ({"vocab_size": 11}, r"another network: tokens\.weight is \[10, 12\], not \[11, 12\]"),
    ],
)
def test_another_encoder_is_named(config, words, tmp_path):
    directory_of(peer("gelu"), tmp_path, "gelu")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(UserError, match=words):
        clip.read(tmp_path)


@pytest.mark.parametrize(
    ("files", "words"),
    [((), r"config\.json: no such file"), (("config.json",), r"no weights; expected model\.safetensors")],
)
def test_a_text_encoder_that_is_not_there_is_said_with_the_key(files, words, tmp_path):
    for name in files:
        (tmp_path / name).write_text("{}")
    options = PromptConfig(encoder="clip", weights=str(tmp_path), tokenizer="bpe")
    with pytest.raises(UserError, match=rf"models\.sd\.condition\.prompt\.weights: .*{words}"):
        text_encoder_from(torch.nn.Module(), options, "models.sd.condition")


def test_the_encoders_of_stable_diffusion_have_their_sizes():
    """OpenAI's ViT-L/14 and, without its last layer, OpenCLIP's ViT-H/14."""
    for sizes, parameters in (
        ({"width": 768, "layers": 12, "heads": 12}, 123_060_480),
        ({"width": 1024, "layers": 23, "heads": 16}, 340_387_840),
    ):
        with torch.device("meta"):
            encoder = CLIPText(49_408, 75, marks=Marks(0, 0, 0), **sizes)
        assert_parameters(encoder, parameters, "text encoder")


# --- as a condition


def told(**options) -> ConditionalNetwork:
    tokenizer = Words(VOCABULARY, padding=MARKS.end)
    object.__setattr__(tokenizer, "start", MARKS.start)
    condition = {"prompt": {"encoder": "clip", "pooled": False, **SIZES, **options}}
    columns = [Prompt(tokenizer, (4,))]
    network = build(UNET | {"attention": "transformer"}, image_size=8, channels=1, ports=ports_for(columns, condition))
    return awake(ConditionalNetwork(network, columns, condition), std=0.3)


def test_its_tokens_enter_the_network_and_nothing_else():
    network = told()
    c = network.text({"prompt": IDS})
    assert c.vector is None
    assert c.tokens.shape == (3, 6, 12)
    assert not any("projection" in name for name in network.text.state_dict())
    assert told(pooled=True).text({"prompt": IDS}).vector.shape == (3, network.network.vector_width)
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([9, 9, 9])
    with torch.no_grad():
        free = ClassifierFree(network, {"prompt": IDS})
        plain, empty = free(x, t), network(x, t)
        torch.testing.assert_close(free.guided(x, t, 2.0), plain + 2 * (plain - empty))
        torch.testing.assert_close(empty[2], plain[2])


def test_no_token_sees_those_after_it():
    network = told()
    changed = IDS.clone()
    changed[0, 3] = 2
    with torch.no_grad():
        one, other = (network.text({"prompt": ids}).tokens for ids in (IDS, changed))
    torch.testing.assert_close(one[0, :4], other[0, :4])
    assert not torch.allclose(one[0, 4:], other[0, 4:])


def test_a_frozen_encoder_needs_no_gradient():
    network = told(frozen=True)
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in network.named_parameters() if name.startswith("text.encoder.")}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"filler": 0}, "`filler` is for `encoder: clip`, found `encoder: glide`"),
        ({"weights": "clip"}, "`weights` is for `encoder: clip`, found `encoder: glide`"),
    ],
)
def test_keys_of_the_other_encoder_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        validate(PromptConfig, options, "test")


def test_a_filler_is_one_of_the_ids():
    with pytest.raises(ValueError, match=r"condition\.prompt\.filler is 10, but the tokenizer has 10 ids"):
        told(filler=10)


def test_clips_vocabulary_says_where_a_text_starts():
    plain = BytePairs(("a", "b</w>", "<|endoftext|>"), (), 4)
    assert (plain.start, plain.padding) == (2, 2)
    marked = BytePairs(("a", "b</w>", "<|startoftext|>", "<|endoftext|>"), (), 4)
    assert (marked.start, marked.padding) == (2, 3)

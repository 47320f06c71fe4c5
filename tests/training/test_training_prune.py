"""Structured pruning: what goes is what did nothing, and the shapes are those of the target."""

from __future__ import annotations

import pytest
import torch

from autoglm.errors import ConfigError
from autoglm.model.config import CONFIGS, ModelConfig
from autoglm.model.network import PhoneModel, span_bias
from autoglm.model.weights import build_model, expected_tensors
from autoglm.training.importance import Importance
from autoglm.training.prune import Kept, choose, cut, prune, target_config
from tiny_training import SMALL_NANO, untrained


def even(config: ModelConfig, seed: int = 0) -> Importance:
    """Importances without meaning, all different."""
    generator = torch.Generator().manual_seed(seed)

    def scores(count: int) -> torch.Tensor:
        return torch.rand(count, generator=generator)

    layers = range(config.num_layers)
    return Importance(
        scores(config.width),
        [scores(config.ffn_width) for _ in layers],
        [scores(config.num_heads) for _ in layers],
        scores(config.num_layers),
    )


@pytest.mark.parametrize(
    "sizes",
    [
        {"ffn_width": 20},
        {"num_heads": 2},
        {"width": 40},
        {"num_layers": 3},
        {"width": 40, "num_heads": 2, "ffn_width": 20, "num_layers": 2},
    ],
)
def test_a_pruned_model_has_the_shapes_of_its_target_and_runs(sizes: dict[str, int]) -> None:
    """Any of the four sizes, alone or together: the weights load into the smaller network, which runs."""
    target = target_config(SMALL_NANO, **sizes)
    small = prune(untrained("").state, SMALL_NANO, target, even(SMALL_NANO))
    model = build_model(target, small)
    image = model.embed_images(torch.zeros(1, 512, 256, 3, dtype=torch.uint8))
    assert torch.isfinite(model.logits(image)).all()
    assert torch.isfinite(model.embed_audio(torch.zeros(1, 240, target.audio.mels))).all()


def test_sizes_with_a_name_of_their_own_get_it() -> None:
    """A teacher cut to the student's sizes is the student, not a small teacher."""
    nano = CONFIGS["nano"]
    sizes = {"width": nano.width, "num_heads": nano.num_heads, "ffn_width": nano.ffn_width}
    assert target_config(CONFIGS["teacher-nano"], **sizes) == nano
    assert target_config(SMALL_NANO, ffn_width=29).name == SMALL_NANO.name


@pytest.mark.parametrize("name", ["9b-int8-pruned", "9b-int4-pruned"])
def test_both_phone_recipes_can_be_cut_from_the_nine_billion_model(name: str) -> None:
    """On the meta device, cutting the 9B model gives every tensor of both pruned recipes its shape."""
    with torch.device("meta"):
        state = PhoneModel(CONFIGS["9b"]).state_dict()
    small = prune(state, CONFIGS["9b"], CONFIGS[name], even(CONFIGS["9b"]))
    assert {key: value.shape for key, value in small.items()} == expected_tensors(CONFIGS[name])


def test_what_does_nothing_can_go_without_a_trace() -> None:
    """Channels and heads whose outputs are zero, and a block that adds nothing, leave the answers alone."""
    state = {name: value.clone() for name, value in untrained("").state.items()}
    dim, importance = SMALL_NANO.head_dim, even(SMALL_NANO)
    dead_channels, dead_heads = torch.tensor([3, 17, 30]), [1, 2]
    for i in range(SMALL_NANO.num_layers):
        state[f"blocks.{i}.down.weight"][:, dead_channels] = 0
        importance.ffn[i][dead_channels] = 0
        for head in dead_heads:
            state[f"blocks.{i}.out.weight"][:, head * dim : (head + 1) * dim] = 0
            importance.heads[i][head] = 0
    for name in ("attention_post_norm", "ffn_post_norm"):
        state[f"blocks.1.{name}.weight"].zero_()
    importance.blocks[1] = 0
    target = target_config(SMALL_NANO, ffn_width=29, num_heads=2, num_layers=3)
    before = answers(SMALL_NANO, state)
    after = answers(target, prune(state, SMALL_NANO, target, importance))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def answers(config: ModelConfig, state: dict[str, torch.Tensor]) -> torch.Tensor:
    model = build_model(config, state)
    ids = torch.arange(200, 212)
    positions = torch.arange(12)[:, None].expand(-1, 3)
    hidden, _ = model(model.embed_tokens(ids)[None], positions, span_bias(torch.zeros(12, dtype=torch.long)))
    return model.logits(hidden)


def test_every_group_of_keys_keeps_its_readers() -> None:
    """Of each KV group the same number of heads stays, however good those of the other group are."""
    importance = even(SMALL_NANO)
    importance.heads[0] = torch.tensor([0.1, 0.2, 0.8, 0.9])
    kept = choose(importance, SMALL_NANO, target_config(SMALL_NANO, num_heads=2))
    assert kept.heads[0].tolist() == [1, 3]


def test_a_smaller_width_keeps_what_embeddings_and_head_make_of_a_token() -> None:
    """Channels of an embedded token that stay keep their size, though the tied scale follows the width."""
    state = untrained("").state
    target = target_config(SMALL_NANO, width=24)
    kept = Kept(torch.arange(24), list(range(4)), [torch.arange(32)] * 4, [torch.arange(4)] * 4)
    small = cut(state, SMALL_NANO, target, kept)
    ids = torch.tensor([5, 6])
    before, after = build_model(SMALL_NANO, state), build_model(target, small)
    torch.testing.assert_close(after.embed_tokens(ids), before.embed_tokens(ids)[:, :24])


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"width": 64}, "width is 48 and cannot be pruned to 64"),
        ({"num_heads": 3}, "3 heads cannot be shared by 2"),
        ({"ffn_width": 0}, "cannot be pruned to 0"),
        ({"head_dim": 6}, "and nothing else"),
    ],
)
def test_a_target_out_of_reach_is_refused(sizes: dict[str, int], message: str) -> None:
    """A size that would grow, vanish, not divide, or is none of the four is refused by name."""
    with pytest.raises(ConfigError, match=message):
        target_config(SMALL_NANO, **sizes)

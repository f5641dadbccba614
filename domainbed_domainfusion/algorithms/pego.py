"""PEGO (Hu et al., ECCV 2024): a frozen Vision Transformer with groups of LoRA pairs that are orthogonal by a loss."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..hosting import context, host
from ..hosting import hparams as table
from ..seeding import generator_of


class PEGO(host.algorithms.ERM):
    """CE + λ·Σ over the blocks' query and value of (Σ_i ‖W·(B_iA_i)ᵀ‖₁ + Σ_{i<j} ‖B_iA_i·(B_jA_j)ᵀ‖₁).

    W is the frozen weight of the query or the value in a block's attention. The `pego_pairs` pairs (A_i, B_i) of
    rank `pego_rank` are added to it. ‖·‖₁ sums the absolute entries. λ is `pego_weight`. Only the pairs and the
    classifier are trained. The first sum keeps what the backbone knows, the second keeps the pairs apart.

    `predict` is ERM's, with the pairs in. Without pairs it is ERM on a frozen backbone, bit for bit.

    The pairs are hooks, so the weights of the backbone keep their names.
    Raises InputError if the backbone is not a Vision Transformer of timm with a joint `qkv` layer in each block.
    """

    def __init__(self, input_shape: tuple, num_classes: int, num_domains: int, hparams: dict[str, Any]):
        table.check_values(hparams)
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.featurizer.requires_grad_(False)
        self.groups: Any = nn.ModuleList()  # of `Group`, one for each block
        for number, qkv in enumerate(qkv_layers(self.featurizer)):
            generator = generator_of(context.current().seed, "PEGO", number)
            group = Group(qkv, hparams["pego_pairs"], hparams["pego_rank"], generator)
            if hparams["pego_pairs"]:
                qkv.register_forward_hook(group.after)
            self.groups.append(group)
        self.optimizer.add_param_group({"params": list(self.groups.parameters())})

    def update(self, minibatches: list, unlabeled: object = None) -> dict[str, float]:
        """One step on [(x, y)] per domain, x: (B, C, H, W), y: (B,); returns the loss, and the sum beside λ in it."""
        x, y = (torch.cat(parts) for parts in zip(*minibatches))
        products = torch.stack(
            [group.products(qkv.weight) for group, qkv in zip(self.groups, qkv_layers(self.featurizer))]
        ).sum()
        loss = F.cross_entropy(self.predict(x), y) + self.hparams["pego_weight"] * products

        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item(), "orthogonality": products.item()}


class Group(nn.Module):
    """The pairs of one block: `down`, the A_i (2, pairs, rank, inputs), and `up`, the B_i (2, pairs, outputs, rank).

    The first index is 0 for the query and 1 for the value. A is uniform as in a new linear layer, and B is zero, so
    that the group changes nothing at first.
    """

    def __init__(self, qkv: nn.Linear, pairs: int, rank: int, generator: torch.Generator):
        super().__init__()
        inputs, outputs = qkv.in_features, qkv.out_features // 3
        uniform = torch.rand(2, pairs, rank, inputs, generator=generator) * 2 - 1
        self.down = nn.Parameter(uniform / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(2, pairs, outputs, rank))

    def after(self, module: nn.Module, inputs: tuple[Tensor], qkv: Tensor) -> Tensor:
        """The forward hook of the layer: its output (B, tokens, 3 · outputs), with Σ_i B_iA_ix added to q and v."""
        q, k, v = qkv.chunk(3, dim=-1)
        low = torch.einsum("btd,wprd->wbtpr", inputs[0], self.down)
        added_q, added_v = torch.einsum("wbtpr,wpor->wbto", low, self.up)
        return torch.cat([q + added_q, k, v + added_v], dim=-1)

    def products(self, weight: Tensor) -> Tensor:
        """The block's two sums of the loss, from the layer's weight (3 · outputs, inputs)."""
        query, _, value = weight.chunk(3)
        frozen = torch.stack([query, value])[:, None]
        preserve = (frozen @ self.down.mT @ self.up.mT).abs().sum()
        first, second = torch.triu_indices(self.down.shape[1], self.down.shape[1], offset=1)
        inner = self.down[:, first] @ self.down[:, second].mT
        return preserve + (self.up[:, first] @ inner @ self.up[:, second].mT).abs().sum()


def qkv_layers(featurizer: nn.Module) -> Iterator[nn.Linear]:
    """The layer of each block that gives query, key and value of the attention at once, in this order."""
    from timm.models.vision_transformer import VisionTransformer  # here, because it takes a second

    network = getattr(featurizer, "network", featurizer)
    blocks = network.blocks if isinstance(network, VisionTransformer) else ()
    layers: list[Any] = [getattr(getattr(block, "attn", None), "qkv", None) for block in blocks]
    if not layers or not all(isinstance(layer, nn.Linear) for layer in layers):
        raise InputError(
            f"PEGO needs a Vision Transformer of timm whose blocks have one layer for query, key and value, but the "
            f'backbone is a {type(network).__name__}: add for example "backbone": "vit_base_patch16_224" to --hparams.'
        )
    yield from layers

"""Every forward-mode rule alone, and whole models, against torch's own differentiation in float64."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel

from domainbed_domainfusion.diffusion import forward_mode
from domainbed_domainfusion.diffusion.forward_mode import RULES, Dual, UnsupportedOperation
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from tests.tiny_ldm import make_tiny_stable_diffusion


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def w(*shape):
    """A constant: a weight, a bias, keys."""
    return draw(*shape, seed=100)


def attention(**options):
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


X, Y = (2, 8, 6, 5), (2, 7, 8)  # an image-like and a token-like shape
# rule -> cases (function, shapes of its varying arguments)
CASES = {
    "add": [
        (lambda a, b: a + b, X, X),
        (lambda a: a + 2.5, X),
        (lambda a: 2.5 + a, X),
        (lambda a: a + w(*X), X),
        (lambda a: w(*X) + a, X),
        (lambda a: a + w(2, 8, 1, 1), X),
        (lambda a: torch.add(a, w(*X)), X),
        (lambda a: w(3, *X) + a, X),
        (lambda a: a + w(3, *X), X),
        (lambda a, b: a + b, X, (8, 6, 5)),
        (lambda a, b: a + b, (6, 5), X),
        (lambda a, b: torch.add(a, b, alpha=3), X, X),
    ],
    "sub": [
        (lambda a, b: a - b, X, X),
        (lambda a: a - w(*X), X),
        (lambda a: a - 1, X),
        (lambda a: 1 - a, X),
        (lambda a: w(*X) - a, X),
    ],
    "mul": [
        (lambda a, b: a * b, X, X),
        (lambda a: 3 * a, X),
        (lambda a: a * w(2, 8, 1, 1), X),
        (lambda a: w(*X) * a, X),
        (lambda a, b: a * b, X, (6, 5)),
        (lambda a, b: a * b, (6, 5), X),
        (lambda a: a * w(3, *X), X),
        (lambda a: torch.mul(w(*X), a), X),
    ],
    "div": [(lambda a: a / 3, X), (lambda a: a / 1, X), (lambda a: a / w(8, 1, 1), X)],
    "linear": [(lambda a: F.linear(a, w(4, 8), w(4)), Y), (lambda a: F.linear(a, w(4, 8)), Y)],
    "conv2d": [
        (lambda a: F.conv2d(a, w(4, 8, 3, 3), w(4), padding=1), X),
        (lambda a: F.conv2d(a, w(4, 8, 1, 1)), X),
        (lambda a: F.conv2d(a, w(4, 8, 3, 3), w(4), stride=2), X),
        (lambda a: F.conv2d(a, w(8, 4, 3, 3), None, 1, 1, 1, 2), X),
        # more weights than pixels: both halves in one call
        (lambda a: F.conv2d(a, w(16, 8, 3, 3), w(16), padding=1), X),
        (lambda a: F.conv2d(a, w(16, 8, 3, 3), stride=2), X),
    ],
    "reshape": [
        (lambda a: a.view(2, 8, 30), X),
        (lambda a: a.reshape(2, -1), X),
        (lambda a: a.view((16, 30)), X),
        (lambda a: a.permute(0, 2, 3, 1).reshape(2, 30, 8), X),
        (lambda a: torch.reshape(a, (4, -1)), X),
    ],
    "permute": [
        (lambda a: a.permute(0, 2, 3, 1), X),
        (lambda a: a.permute(0, -1, 1, 2), X),
        (lambda a: a.permute((3, 2, 1, 0)), X),
    ],
    "transpose": [
        (lambda a: a.transpose(1, 2), X),
        (lambda a: a.transpose(-1, -2), X),
        (lambda a: a.transpose(0, -1), X),
    ],
    "flatten": [(lambda a: a.flatten(1), X), (lambda a: a.flatten(), X), (lambda a: a.flatten(0, 1), X)],
    "contiguous": [(lambda a: a.transpose(1, 2).contiguous().view(2, -1), X)],
    "to": [(lambda a: a.to(torch.float64), X), (lambda a: a.to("cpu", torch.float64), X)],
    "getitem": [(lambda a: a[0], X), (lambda a: a[:, 2:4], X), (lambda a: a[..., 1], X), (lambda a: a[:, None], X)],
    "chunk": [
        (lambda a: a.chunk(2, dim=1)[1], X),
        (lambda a: torch.chunk(a, 2, dim=-3)[0], X),
        (lambda a: a.chunk(2)[1], X),
    ],
    "cat": [
        (lambda a, b: torch.cat([a, b], dim=1), X, X),
        (lambda a: torch.cat([w(*X), a], dim=-1), X),
        (lambda a, b: torch.cat((a, b)), X, X),
    ],
    "pad": [
        (lambda a: F.pad(a, (0, 1, 0, 1)), X),
        (lambda a: F.pad(a, (1, 2, 0, 1), "constant", 3.0), X),
        (lambda a: F.pad(a, (1, 1, 2, 1), mode="reflect"), X),
    ],
    "interpolate": [
        (lambda a: F.interpolate(a, scale_factor=2.0, mode="nearest"), X),
        (lambda a: F.interpolate(a, size=(9, 9), mode="bilinear"), X),
    ],
    "dropout": [(lambda a: F.dropout(a, 0.5, training=False), X), (lambda a: F.dropout(a, 0.0), X)],
    "silu": [(F.silu, X), (lambda a: F.silu(a.transpose(1, 2)), X)],
    "relu": [(F.relu, X), (lambda a: F.relu(a * 1.0, inplace=True), X), (lambda a: a.relu(), X)],
    "gelu": [
        (F.gelu, X),
        (lambda a: F.gelu(a, approximate="tanh"), X),
        (lambda a: F.gelu(a.chunk(2, -1)[1]), (2, 7, 8)),
    ],
    "exp": [(torch.exp, X), (lambda a: a.exp(), X)],
    "clamp": [(lambda a: torch.clamp(a, -0.5, 0.7), X), (lambda a: a.clamp(min=0), X), (lambda a: a.clamp(max=0.1), X)],
    "group_norm": [
        (lambda a: F.group_norm(a, 4, w(8), w(8), 1e-6), X),
        (lambda a: F.group_norm(a, 2), X),
        (lambda a: F.group_norm(a.transpose(1, 2), 4, w(8), w(8)), Y),
    ],
    "layer_norm": [
        (lambda a: F.layer_norm(a, (8,), w(8), w(8), 1e-6), Y),
        (lambda a: F.layer_norm(a, (8,)), Y),
        (lambda a: F.layer_norm(a, (7, 8), w(7, 8)), Y),
    ],
    "scaled_dot_product_attention": [
        (attention(), (2, 3, 7, 4), (2, 3, 9, 4), (2, 3, 9, 6)),
        (attention(scale=0.3), (2, 3, 7, 4), (2, 3, 7, 4), (2, 3, 7, 4)),
        (lambda q: attention()(q, w(2, 3, 9, 4), w(2, 3, 9, 6)), (2, 3, 7, 4)),
        (lambda q, k: attention()(q, k, w(2, 3, 9, 4)), (2, 3, 7, 4), (2, 3, 9, 4)),
        (lambda q, v: attention()(q, w(2, 3, 9, 4), v), (2, 3, 7, 4), (2, 3, 9, 4)),
        (lambda k: attention()(w(2, 3, 7, 4), k, k), (2, 3, 9, 4)),
        (lambda v: attention()(w(2, 3, 7, 4), w(2, 3, 9, 4), v), (2, 3, 9, 4)),
    ],
}
ALIASES = {"view": "reshape"}


def difference(function, primals, tangents):
    """Relative error of value and derivative."""
    with sdpa_kernel(SDPBackend.MATH):  # the others have no derivative of the derivative
        value, derivative = torch.autograd.functional.jvp(function, tuple(primals), tuple(tangents))
    with torch.no_grad():
        dual = function(*(Dual(x, t) for x, t in zip(primals, tangents)))
    assert dual.shape == dual.tangent.shape == value.shape
    return [
        ((ours - theirs).norm() / theirs.norm()).item()
        for ours, theirs in ((dual.primal, value), (dual.tangent, derivative))
    ]


@pytest.mark.parametrize(
    "name, case",
    [(name, case) for name, cases in CASES.items() for case in cases],
    ids=[f"{name}-{n}" for name, cases in CASES.items() for n in range(len(cases))],
)
def test_a_rule_is_torchs_derivative(name, case, monkeypatch):
    called = []
    rule_itself = RULES[name]
    monkeypatch.setitem(RULES, name, lambda *args, **kwargs: called.append(name) or rule_itself(*args, **kwargs))
    for alias, rule in ALIASES.items():
        if rule == name:
            monkeypatch.setitem(RULES, alias, RULES[name])
    function, *shapes = case
    primals = [draw(*shape, seed=n) for n, shape in enumerate(shapes)]
    tangents = [draw(*shape, seed=10 + n) for n, shape in enumerate(shapes)]
    assert max(difference(function, primals, tangents)) < 1e-13
    assert called, f"the case does not reach the rule {name}"


def test_every_rule_has_a_case():
    assert set(RULES) == set(CASES) | set(ALIASES)
    assert all(RULES[alias] is RULES[name] for alias, name in ALIASES.items())


@pytest.mark.parametrize("block", [1, 100, 10**6])
def test_attention_does_not_depend_on_the_blocks(monkeypatch, block):
    monkeypatch.setitem(forward_mode.BLOCK, "cpu", block)
    shapes = (2, 3, 7, 4), (2, 3, 9, 4), (2, 3, 9, 6)
    assert max(difference(attention(), [draw(*s) for s in shapes], [draw(*s, seed=1) for s in shapes])) < 1e-13


def test_the_channels_stay_innermost():
    """From convolution to convolution no rule changes the memory format, or every layer would copy."""
    inner = torch.channels_last
    x = F.conv2d(Dual(draw(*X), draw(*X, seed=1)), w(8, 8, 3, 3).to(memory_format=inner), w(8), padding=1)
    for dual in (x, F.group_norm(x, 4, w(8), w(8)), F.silu(F.group_norm(x, 4)), F.gelu(x), x + F.silu(x)):
        assert dual.primal.is_contiguous(memory_format=inner) and dual.tangent.is_contiguous(memory_format=inner)


def test_constant_keys_and_values_are_what_the_unet_has(monkeypatch):
    """Cross-attention: the text does not vary, so neither is made twice as wide."""
    widths = []
    monkeypatch.setattr(
        forward_mode, "_attend", lambda query, keys, values, result: widths.append((keys.shape[-1], values.shape[-1]))
    )
    attention()(Dual(draw(1, 1, 7, 4), draw(1, 1, 7, 4)), w(1, 1, 9, 4), w(1, 1, 9, 6))
    assert widths == [(4, 6)]


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda x: torch.fft.fft(x), "fft_fft"),
        (lambda x: x.cumsum(0), "cumsum"),
        (lambda x: torch.sigmoid(x), "sigmoid"),
        (lambda x: F.dropout(x, 0.5), "dropout in training mode"),
        (lambda x: x / x, "division by a value that varies"),
        (lambda x: w(*X) / x, "division by a value that varies"),
        (lambda x: F.linear(w(2, 5), x[0, 0]), "linear with weights that vary"),
        (lambda x: F.conv2d(w(1, 8, 9, 9), x), "conv2d with weights that vary"),
        (
            lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
            "attention with a mask, with dropout or with grouped heads",
        ),
    ],
)
def test_an_unsupported_operation_is_named_with_the_remedy(call, name):
    with pytest.raises(UnsupportedOperation) as error:
        call(Dual(draw(*X), draw(*X)))
    assert str(error.value) == (
        f"Forward-mode differentiation has no rule for {name}: use the reverse gradient mode, "
        "or add a rule to diffusion/forward_mode.py."
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function, shape, weight", [(F.linear, (2, 7, 8), (4, 8)), (F.conv2d, X, (4, 8, 3, 3))])
def test_in_16_bits_the_primal_is_rounded_once(function, shape, weight, dtype):
    """The bias goes in before the product is rounded, as in the module itself."""
    x, t, weight, bias = (each.to(dtype) for each in (draw(*shape), draw(*shape, seed=1), w(*weight), 10 * w(4)))
    dual = function(Dual(x, t), weight, bias)
    assert torch.equal(dual.primal, function(x, weight, bias)) and torch.equal(dual.tangent, function(t, weight))


def test_what_a_tensor_tells_of_itself():
    dual = Dual(draw(*X), draw(*X))
    assert (dual.shape, dual.ndim, dual.dim(), dual.numel()) == (torch.Size(X), 4, 4, 480)
    assert (dual.size(), dual.size(1), dual.dtype, dual.device.type) == (torch.Size(X), 8, torch.float64, "cpu")
    assert not dual.is_cuda and not dual.requires_grad and not hasattr(dual, "some_attribute")


def test_an_operation_leaves_its_arguments_alone():
    primal, tangent = draw(*X), draw(*X, seed=1)
    before = primal.clone(), tangent.clone()
    dual = Dual(primal, tangent)
    for name, cases in CASES.items():
        for function, *shapes in cases:
            if shapes == [X]:
                function(dual)
    assert torch.equal(dual.primal, before[0]) and torch.equal(dual.tangent, before[1])


def whole_model(ldm):
    embeddings = draw(2, 77, ldm._unet.config.cross_attention_dim).to(ldm.dtype)
    return lambda x: ldm.predict_noise(ldm.encode(x), torch.tensor([5, 700]), embeddings)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_whole_models(tmp_path, size):
    """Encoder and U-Net in one: to rounding in float64, and the float32 result against the float64 one."""
    folder = str(make_tiny_stable_diffusion(tmp_path, size=size))
    double, single = (LatentDiffusion.load(folder, device="cpu", dtype=name) for name in ("float64", "float32"))
    x, t = draw(2, 3, 72, 72).clamp(-1, 1), draw(2, 3, 72, 72, seed=1)
    assert max(difference(whole_model(double), [x], [t])) < 1e-12
    with torch.no_grad():
        reference = whole_model(double)(Dual(x, t))
        ours = whole_model(single)(Dual(x.float(), t.float()))
    assert ((ours.tangent - reference.tangent).norm() / reference.tangent.norm()) < 1e-4
    assert ((ours.primal - reference.primal).norm() / reference.primal.norm()) < 1e-5


def test_linear_projections_in_the_unet_and_attention_in_the_vae(tmp_path):
    """The other variants that Stable Diffusion 1.x and 2.x folders have."""
    ldm = LatentDiffusion.load(
        str(make_tiny_stable_diffusion(tmp_path, use_linear_projection=True)), device="cpu", dtype="float64"
    )
    assert isinstance(ldm._unet, UNet2DConditionModel) and isinstance(ldm._vae, AutoencoderKL)
    assert ldm._vae.config.mid_block_add_attention
    x, t = draw(2, 3, 16, 16).clamp(-1, 1), draw(2, 3, 16, 16, seed=1)
    assert max(difference(whole_model(ldm), [x], [t])) < 1e-12

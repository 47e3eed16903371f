"""What helps when a converter refuses an operator: known rewrites, each an equal or near-equal of the operator."""

from __future__ import annotations

import re
from collections.abc import Mapping

_NOISE = "draw the random numbers outside and give them to the network as an input"
_FIXED = "keep the shape fixed: torch.where(mask, x, 0) in place of picking what a mask selects, topk with a fixed k"
_APPROXIMATE = "approximate it over the range it sees, by a polynomial or a table, or compute it outside the network"
_SMALL_MATRIX = (
    "write the closed form for a small matrix, a fixed number of iterations for a larger one, or do it outside"
)
_REAL = "carry the real and the imaginary part as two real tensors"
_FOURIER = "multiply by a constant DFT matrix (cosines and sines), or compute the spectrum outside the network"
_PICK = "take the largest one by one (amax, then mask it) where k is small, or sort in the app"
_LOGIC = "use torch.logical_and, logical_or or logical_xor on booleans, arithmetic on numbers"
_RECURRENT = "write its steps out in forward, over a fixed number of time steps"
_ONE_HOT = "compare with arange and sum: (x[..., None] == torch.arange(n)).sum(0)"
_COUNT = "count the boundaries below: (x[..., None] > boundaries).sum(-1)"

# By the operator's name without namespace, overload and the underscores around it.
REWRITES: Mapping[str, str] = {
    "adaptive_avg_pool2d": "use avg_pool2d with a fixed kernel and stride",
    "adaptive_avg_pool3d": "use avg_pool3d with a fixed kernel and stride",
    "adaptive_max_pool2d": "use max_pool2d with a fixed kernel and stride",
    "bernoulli": _NOISE,
    "bincount": _ONE_HOT,
    "bucketize": _COUNT,
    "cdist": "write the distance out: (x² summed) + (y² summed) - 2 x @ y.mT, clamped at 0, then sqrt",
    "cdist_forward": "write the distance out: (x² summed) + (y² summed) - 2 x @ y.mT, clamped at 0, then sqrt",
    "complex": _REAL,
    "cumprod": "multiply slice by slice, or exp(cumsum(log(x))) where x is positive",
    "cumsum": "multiply by a constant triangular matrix of ones",
    "det": _SMALL_MATRIX,
    "digamma": _APPROXIMATE,
    "embedding_bag": "use embedding, then sum or mean",
    "empty_like": "use zeros_like or full_like: what nobody wrote has no value that could be exported",
    "erfinv": _APPROXIMATE,
    "fold": "use conv_transpose2d with a constant one-hot kernel",
    "gru": _RECURRENT,
    "grid_sampler_2d": "use interpolate where the grid only scales; warp outside the network where it does not",
    "grid_sampler": "use interpolate where the grid only scales; warp outside the network where it does not",
    "histc": _COUNT,
    "i0": _APPROXIMATE,
    "im2col": "use conv2d with a constant one-hot kernel",
    "col2im": "use conv_transpose2d with a constant one-hot kernel",
    "index_put": "use torch.where with a mask, or torch.cat of the parts",
    "int_mm": "use float matrices: int8 comes from quantising the exported network",
    "inverse": _SMALL_MATRIX,
    "kthvalue": "sort, then select the k-th",
    "lgamma": _APPROXIMATE,
    "lstm": _RECURRENT,
    "masked_select": _FIXED,
    "max_pool2d_with_indices": "use max_pool2d without return_indices",
    "max_unpool2d": "upsample to the nearest and multiply by the mask of the maxima",
    "median": "sort, then select the middle",
    "multinomial": _NOISE,
    "nonzero": _FIXED,
    "one_hot": "compare with arange: (x[..., None] == torch.arange(n)).float()",
    "pad": "pad with constants, or join the slices of a circular border by torch.cat",
    "normal": _NOISE,
    "rand": _NOISE,
    "rand_like": _NOISE,
    "randint": _NOISE,
    "randn": _NOISE,
    "randn_like": _NOISE,
    "roll": "use torch.cat of the two slices that change places",
    "scaled_dot_product_attention": "write it out: softmax(q @ k.mT / sqrt(d)) @ v",
    "scatter": "compare with arange and use torch.where: the mask of index == torch.arange(n)",
    "searchsorted": _COUNT,
    "sort": _PICK,
    "argsort": _PICK,
    "and": _LOGIC,
    "or": _LOGIC,
    "xor": _LOGIC,
    "bitwise_and": _LOGIC,
    "bitwise_or": _LOGIC,
    "bitwise_xor": _LOGIC,
    "topk": _PICK,
    "unfold": "use conv2d with a constant one-hot kernel",
    "uniform": _NOISE,
    "unique2": _FIXED,
    "unique_dim": _FIXED,
    "upsample_bicubic2d": "interpolate with mode='bilinear'",
    "upsample_bilinear2d_aa": "interpolate with antialias=False, or resize outside the network",
    "upsample_bicubic2d_aa": "interpolate with mode='bilinear' and antialias=False, or resize outside the network",
    "view_as_complex": _REAL,
    "view_as_real": _REAL,
}
_FAMILIES = (
    (re.compile(r"linalg_.*|qr|svd|cholesky.*|lu_.*|triangular_solve"), _SMALL_MATRIX),
    (re.compile(r"fft_.*|stft|istft"), _FOURIER),
    (re.compile(r"special_.*|bessel_.*|erf_inv|polygamma|igammac?|mvlgamma"), _APPROXIMATE),
)
_BY_MESSAGE = (
    (
        re.compile(r"data.dependent|concrete value is expected|unbacked|statically specified|\bu\d+\b", re.I),
        _FIXED,
    ),
    (re.compile(r"float64|double|f64|bf16", re.I), "compute in float32: x.float() in place of x.double() or a half"),
    (re.compile(r"complex", re.I), _REAL),
    (
        re.compile(r"deserializing the saved file"),
        "write operators of other libraries in PyTorch's own, or save the file again with this version of PyTorch",
    ),
    (re.compile(r"keyword inputs"), "wrap it in a module whose forward takes positional inputs"),
    (
        re.compile(r"fixed batch"),
        "save it with dynamic_shapes=({0: torch.export.Dim.AUTO},), or from an example of batch 1",
    ),
)


def remedies(operator: str, sentence: str) -> tuple[str, ...]:
    """What helps against `operator` (`aten.roll.default`, "" where unknown) refused with `sentence`, the best first."""
    found: list[str] = []
    namespace, _, rest = operator.partition(".")
    name = rest.partition(".")[0].strip("_")
    if operator and namespace not in ("aten", "prims"):
        found.append(f"write {operator} in PyTorch's own operators: no converter knows those of another library")
    elif name in REWRITES:
        found.append(REWRITES[name])
    else:
        found += [remedy for family, remedy in _FAMILIES if family.fullmatch(name)]
    found += [remedy for pattern, remedy in _BY_MESSAGE if pattern.search(sentence)]
    return tuple(dict.fromkeys(found))
